"""Compiled towers compute what plain ones do, under the same names."""

from pathlib import Path

import pytest
from small_run import small_config, write_small_data

from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.training.trainer import Trainer

STEPS = 3


def trainer(compiled: bool, data: Path, run: Path, process: Process) -> Trainer:
    stages = [{"split": "train", "epochs": 1, "lr": 0.003}]
    train = {"compile": compiled, "validation": False, "stages": stages}
    return Trainer(small_config(train=train), data, run, process)


def losses(made: Trainer) -> list[float]:
    made.model.train()
    made.optimizers.set_rates(made.stages[0], 1, 100)
    source = made.readers["train"].epoch(0)
    return [float(made.pipeline.progress(source).terms["loss"]) for _ in range(STEPS)]


def test_a_compiled_run_learns_alike_and_resumes_uncompiled(tmp_path: Path) -> None:
    data = write_small_data(tmp_path / "data", small_config())
    with process_group("cpu") as process:
        plain = trainer(False, data, tmp_path / "plain", process)
        compiled = trainer(True, data, tmp_path / "compiled", process)
        assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
        towers = [module for module in compiled.model.modules() if module._compiled_call_impl is not None]
        assert [type(tower).__name__ for tower in towers] == ["RelevanceTower", "ClickTower"]
        assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
        compiled.position.update(step=STEPS, batch=STEPS)
        progress = {"step": STEPS, "position": compiled.position, "job": compiled.job}
        compiled.checkpoints.save(compiled.parts, progress)

        goes_on = trainer(False, data, tmp_path / "compiled", process)
        goes_on.train()
        assert goes_on.checkpoints.progress()["step"] > STEPS
