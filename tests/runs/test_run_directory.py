"""Which run directory a training job may use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import small_config, write_small_data

from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.runs.layout import checkpoint_index, checkpoint_path, load_run
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer


def test_a_run_without_a_checkpoint_is_taken_over_and_one_with_a_checkpoint_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [small_config(train={"seed": seed}) for seed in (1, 2, 3)]
    data, run = write_small_data(tmp_path / "data", configs[0], requests=16), tmp_path / "run"
    with process_group("cpu") as process:
        for config in (configs[0], configs[0]):
            Trainer(config, data, run, process)
        assert "begun anew" not in capsys.readouterr().err
        trainer = Trainer(configs[1], data, run, process)
        assert (
            f"note: {run} was started with another configuration and has no checkpoint; it is begun anew"
            in capsys.readouterr().err
        )
        assert load_run(run).train.seed == 2
        trainer.train()
        with pytest.raises(ConfigError, match=r"was started with another configuration \(train.seed: 2 then, 3 now\)"):
            Trainer(configs[2], data, run, process)


@pytest.mark.parametrize("kept", ["", "data: {}\n"])
def test_a_run_whose_configuration_was_cut_off_is_refused(tmp_path: Path, kept: str) -> None:
    (tmp_path / "config.yaml").write_text(kept, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: \w+ is missing; a run keeps its whole configuration"):
        load_run(tmp_path)


def test_checkpoints_of_another_release_are_refused_before_the_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {of: another release}", encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    for version, stands in ({}, 1), ({"version": 1}, 1), ({"version": 99}, 99):
        index = {**version, "last": "step-000000003"}
        (tmp_path / "checkpoints" / "index.json").write_text(json.dumps(index), encoding="utf-8")
        refused = rf"index\.json: these checkpoints are of version {stands} and this release reads version \d+.*; train again"
        for read in (load_run, checkpoint_index, lambda run: checkpoint_path(run, "best")):
            with pytest.raises(ValueError, match=refused):
                read(tmp_path)


def test_training_refuses_a_run_of_another_release(tmp_path: Path) -> None:
    config, run = small_config(train={"stages": [{"split": "train", "epochs": 1}]}), tmp_path / "run"
    data = write_small_data(tmp_path / "data", config, requests=16)
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()
        index = run / "checkpoints" / "index.json"
        written = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps({name: value for name, value in written.items() if name != "version"}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"these checkpoints are of version 1 .*; train again, with another --run"):
            Trainer(config, data, run, process)
