"""Whether a chain of labels learns: carts and orders made of the clicks of a simulated log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.training.trainer import Trainer

SETTINGS = [
    "data.labels={cart: {}, order: {after: cart}}",
    "data.split.test_fraction=0.25",
    "score={click: 1, order: 20}",
    "model.text=false",
    "model.parts.taste=null",
    "model.parts.personal=null",
    "text.vocab_size=600",
]


def add_labels(raw: Path) -> None:
    """Carts follow clicks on every other brand far more often than on the rest, orders carts of every other category."""
    impressions, items = (pq.read_table(raw / f"{name}.parquet") for name in ("impressions", "items"))
    about = {row["item_id"]: row for row in items.to_pylist()}
    shown = [about[item] for item in impressions["item_id"].to_pylist()]
    rng, found = np.random.default_rng(5), impressions["click"].to_numpy().astype(bool)
    for label, attribute in (("cart", "brand_id"), ("order", "category_id")):
        likely = np.array([row[attribute] % 2 for row in shown], dtype=bool)
        found = found & (rng.random(len(found)) < np.where(likely, 0.85, 0.3))
        impressions = impressions.append_column(label, pa.array(found).cast(pa.int8()))
    pq.write_table(impressions, raw / "impressions.parquet")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("learned")
    simulate(root / "log", requests=6000, users=150, queries=80, items=400)
    add_labels(root / "log" / "raw")
    config: RunConfig = load_config("demo", SETTINGS)
    prepare(config.data, config.text, root / "log" / "raw", root / "data", progress=False)
    with process_group("cpu") as process:
        Trainer(config, root / "data", root / "run", process).train()
    evaluate(["--run", str(root / "run"), "--data", str(root / "data")])
    found: dict[str, Any] = json.loads((root / "run" / "metrics-test.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("label", ["click", "cart", "order"])
def test_a_label_is_told_apart_and_its_probabilities_are_true(measured: dict[str, Any], label: str) -> None:
    found = measured["labels"][label]
    assert found["auc"] > 0.65 and found["normalized_entropy"] < 0.97, found
    assert 0.88 < found["calibration"] < 1.12, found  # of some 600 positives, three standard errors


def test_ranking_by_the_expected_worth_captures_more_of_it(measured: dict[str, Any]) -> None:
    captured = measured["value"]["captured@3"]
    assert captured["click_probability"] + 0.02 < captured["score"] < captured["best"]
