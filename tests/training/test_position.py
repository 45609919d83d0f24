"""Where a run goes on that other ranks began."""

from pathlib import Path

import torch
from small_model import copies
from small_run import small_config, write_small_data

from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.training.trainer import Trainer


def test_an_epoch_that_two_ranks_began_is_ended_by_one_and_not_begun_again(tmp_path: Path) -> None:
    stage = {"split": "train", "epochs": 2, "table_lr": 1e-12, "reset_tables": True}
    config = small_config(train={"stages": [stage], "validation": False})
    data = write_small_data(tmp_path / "data", config, requests=40)
    run = tmp_path / "run"
    with process_group("cpu") as process:
        began = Trainer(config, data, run, process)
        began.optimizers.init_state()
        began.position.update(step=7, epoch=1, batch=2)  # 2 x 2 batches of 8 requests: one is left
        progress = {"step": 7, "position": began.position, "job": {**began.job, "world_size": 2}}
        began.checkpoints.save(began.parts, progress)
        tables = {name: value for name, value in copies(began.model.state_dict()).items() if name.startswith("embeddings.")}

        goes_on = Trainer(config, data, run, process)
        goes_on.train()
        ended = goes_on.checkpoints.progress()
        assert ended["step"] == 8 and ended["job"]["world_size"] == 1
        assert ended["position"] == {"step": 8, "stage": 0, "epoch": 2, "batch": 0, "earlier": []}
        last = copies(goes_on.model.state_dict())
        assert tables and all(torch.allclose(value, last[name], atol=1e-9) for name, value in tables.items())
