from pathlib import Path

import pytest
import torch
from small_model import Small, copies, small_model
from small_run import small_config, write_small_data

from prectr_torchrec.checkpoints.names import parameter_name
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.train import StageConfig
from prectr_torchrec.distributed.managed import flush_managed
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.task import build_task
from prectr_torchrec.training.trainer import Trainer

STAGE = StageConfig(epochs=1, lr=0.01, encoder_lr=0.001, table_lr=0.1)


def frozen_config(*patterns: str) -> RunConfig:
    """A table of each kind, hashed and managed, of sequences and of bags."""
    tree = small_config(train={"freeze": list(patterns)}).model_dump(mode="json")
    managed = {"ids": "managed", "rows": 24, "buckets": 12, "managed": {"interval": 1}, "sharding": ["row_wise"]}
    for table in ("query", "title_token"):
        tree["tables"][table] |= managed
    tree["tables"]["user"]["optimizer"] = "adagrad"
    return RunConfig.model_validate(tree)


def everything(small: Small) -> dict[str, dict[str, torch.Tensor]]:
    """By parameter name, its weights, its table's optimizer state and its managed ids."""
    flush_managed(small.model)
    found: dict[str, dict[str, torch.Tensor]] = {}
    states = {
        f"{name}.{key}": v for name, state in small.optimizers.fused.state_dict()["state"].items() for key, v in state.items()
    }
    for name, value in copies({**small.model.state_dict(), **states}).items():
        parameter = f"tables.{name.split('.')[-2]}" if name in states else parameter_name(name)
        found.setdefault(parameter, {})[name] = value
    return found


def moved(before: dict[str, dict[str, torch.Tensor]], after: dict[str, dict[str, torch.Tensor]]) -> set[str]:
    return {name for name, tensors in before.items() if any(not torch.equal(tensors[key], after[name][key]) for key in tensors)}


def test_frozen_tables_and_towers_stay_as_they_are_and_all_others_learn(tmp_path: Path) -> None:
    tables = {"tables.item", "tables.user", "tables.query", "tables.title_token", "tables.brand"}
    with small_model(tmp_path / "free", frozen_config()) as small:
        small.optimizers.set_rates(STAGE, 60, 100)
        before = everything(small)
        small.model.train()
        small.train()
        learn = moved(before, everything(small))
    assert tables < learn and len(learn) > 50
    with small_model(
        tmp_path / "frozen", frozen_config("tables.item", "tables.query", "tables.title*", "tables.user", "relevance.*")
    ) as small:
        small.optimizers.set_rates(STAGE, 60, 100)
        before = everything(small)
        small.model.train()
        small.train()
        still = {name for name in before if name.startswith("relevance.")} | (tables - {"tables.brand"})
        assert moved(before, everything(small)) == learn - still


def test_frozen_tables_are_not_started_afresh_between_epochs(tmp_path: Path) -> None:
    config = frozen_config("tables.item")
    data = write_small_data(tmp_path / "data", config, requests=16)
    with process_group("cpu") as process:
        trainer = Trainer(config, data, tmp_path / "run", process)
        first = {name: value for name, value in copies(trainer.model.state_dict()).items() if name.endswith(".item.weight")}
        trainer.train()
        last = copies(trainer.model.state_dict())
        assert first and all(torch.equal(value, last[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("tables.itm", r"train\.freeze: the pattern 'tables\.itm' matches no parameter; did you mean 'tables\.item'"),
        ("xyz.*", r"train\.freeze: the pattern 'xyz\.\*' matches no parameter; `prectr checkpoint inspect"),
        ("*", r"train\.freeze: \['\*'\] leaves no parameter of the towers to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(tmp_path: Path, pattern: str, complaint: str) -> None:
    config = frozen_config(pattern)
    data = write_small_data(tmp_path / "data", config, requests=8)
    with pytest.raises(ConfigError, match=complaint):
        build_task(config, data / "tokenizer")
