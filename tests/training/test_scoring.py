"""What the model reports of each candidate besides its score."""

from pathlib import Path

import pytest
import torch
from small_run import small_config, write_small_data
from torch import Tensor

from prectr_torchrec.config import RunConfig
from prectr_torchrec.data.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.training.build import build_task


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("scoring"), small_config(), requests=40)


def report_of(config: RunConfig, data: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    task = build_task(config, data / TOKENIZER).train()
    _, report = task(next(SearchReader(config, data, "train", data / TOKENIZER).epoch(0)))
    assert not any(value.requires_grad for value in report.values())
    return report


def test_every_part_is_reported_for_each_candidate(data: Path) -> None:
    report = report_of(small_config(), data)
    shapes = {name: tuple(report[name].shape) for name in ("preference_weights", "taste")}
    assert shapes == {"preference_weights": (64, 3), "taste": (64,)}
    assert set(report["levels_in_order"].tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(report["preference_weights"].sum(1), torch.ones(64))


def test_parts_that_are_switched_off_are_not_reported(data: Path) -> None:
    report = report_of(small_config(model={"preference": {}, "mixture": False}), data)
    assert not {"levels_in_order", "preference_weights", "taste"} & report.keys()
    weighed = report_of(small_config(model={"preference": {"peers": True}}), data)
    assert "preference_weights" in weighed and "taste" not in weighed


def test_effects_are_reported_where_asked_for_and_never_in_training(data: Path) -> None:
    effects = {"effect_own", "effect_own_slope", "effect_peers", "effect_peers_slope"}
    task = build_task(small_config(), data / TOKENIZER)
    batch = next(SearchReader(small_config(), data, "train", data / TOKENIZER).epoch(0))
    assert not effects & task.eval()(batch)[1].keys()
    task.objective.effects = True
    report = task.eval()(batch)[1]
    assert {name: tuple(report[name].shape) for name in effects} == dict.fromkeys(effects, (64,))
    assert not effects & task.train()(batch)[1].keys()
    single = build_task(small_config(model={"mixture": False}), data / TOKENIZER).eval()
    single.objective.effects = True
    assert effects & single(batch)[1].keys() == {"effect_own", "effect_peers"}
