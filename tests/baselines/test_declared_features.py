"""Declared columns as features of the boosted trees, and LambdaMART, on a small log that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prectr_torchrec.baselines.run import run_baseline
from prectr_torchrec.baselines.samples import Samples, candidate_requests
from prectr_torchrec.baselines.trees import TreesConfig, TreesScorer
from prectr_torchrec.config.columns import ColumnsConfig, LabelColumn
from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate

QUICK = ["rounds=60", "learning_rate=0.1", "min_data_in_leaf=50"]
LABELS = {"cart": LabelColumn(time="cart_time"), "order": LabelColumn(time="order_time", after="cart")}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    meta = simulate(folder, requests=1500, users=60, queries=60, items=300, price=3.0, tags=3.0, image=1.0, labels=1.0)
    columns = ColumnsConfig.model_validate({"items": {"price": "number", "tags": "ids", "image": {"vector": 16}}})
    split = Split(test_from=meta["test_from_timestamp"])
    data = DataConfig(history_length=20, peer_length=10, columns=columns, labels=LABELS, split=split)
    prepare(data, TextConfig(vocab_size=600), folder / "raw", folder / "samples", progress=False)
    return folder


@pytest.fixture(scope="module")
def scorer(log: Path) -> TreesScorer:
    return TreesScorer(Samples.open(log / "samples"), ["train"], TreesConfig(rounds=5, bag=3))


def features_of_test(scorer: TreesScorer, log: Path) -> dict[str, Any]:
    """All of the first row group's features."""
    samples = Samples.open(log / "samples")
    columns = next(samples.columns("test", scorer._features.columns(samples.data)))
    return scorer._features(columns, np.zeros(len(candidate_requests(columns)), bool))


def test_each_candidate_has_its_own_number_tags_and_counts(scorer: TreesScorer, log: Path) -> None:
    features = features_of_test(scorer, log)
    rows = [
        (price, tags, carts, row["user_carts"])
        for row in pq.read_table(log / "samples" / "test").to_pylist()
        for price, tags, carts in zip(row["candidate_price"], row["candidate_tags"], row["candidate_carts"], strict=True)
    ][: len(features["candidate_price"])]
    np.testing.assert_array_equal(features["candidate_price"], [np.nan if price is None else price for price, *_ in rows])
    images = pq.read_table(log / "raw" / "items.parquet", columns=["item_id", "image"]).to_pydict()
    image = dict(zip(images["item_id"], images["image"], strict=True))
    items = [item for row in pq.read_table(log / "samples" / "test")["candidate_item_id"].to_pylist() for item in row]
    expected = [np.nan if image[item] is None else image[item][3] for item in items]
    np.testing.assert_allclose(features["candidate_image_3"], expected[: len(rows)], rtol=1e-6)
    np.testing.assert_array_equal(features["candidate_tags_count"], [len(tags) for _, tags, *_ in rows])
    train = [
        tag for row in pq.read_table(log / "samples" / "train")["candidate_tags"].to_pylist() for tags in row for tag in tags
    ]
    values, counts = np.unique(train, return_counts=True)
    for number, tag in enumerate(np.sort(values[np.argsort(-counts, kind="stable")[:3]])):
        np.testing.assert_array_equal(features[f"candidate_tags_{number}"], [tag in tags for _, tags, *_ in rows])
    np.testing.assert_allclose(features["candidate_carts"], np.log1p([carts for *_, carts, _ in rows]), rtol=1e-6)
    np.testing.assert_allclose(features["user_carts"], np.log1p([np.sum(of_user) for *_, of_user in rows]), rtol=1e-6)


def measured(log: Path, out: Path, *overrides: str) -> dict[str, Any]:
    run_baseline("trees", log / "samples", out, oracle=log / "eval" / "oracle.parquet", overrides=[*QUICK, *overrides])
    return json.loads((out / "metrics-test.json").read_text(encoding="utf-8"))


def test_lambdamart_ranks_and_its_probabilities_are_those_of_clicks(log: Path, tmp_path: Path) -> None:
    found = measured(log, tmp_path / "run", "objective=lambdarank")
    expected = found["oracle"]["expected_auc"]["shown"]
    assert expected["model"] > expected["true_grade"]
    assert 0.75 < found["clicks_at_position"]["calibration"] < 1.33
    assert found["clicks_at_position"]["normalized_entropy"] < 1


def test_of_several_trials_the_best_on_validation_is_kept(log: Path) -> None:
    samples = Samples.open(log / "samples")
    quick: dict[str, Any] = {"rounds": 30, "learning_rate": 1e-4}  # that the given settings learn nothing is certain
    one, several = (TreesScorer(samples, ["train"], TreesConfig(trials=trials, **quick)).boosting for trials in (1, 3))
    assert several.score < one.score
    assert several.settings["learning_rate"] > 0.01


def test_past_events_are_compared_by_the_ids_that_they_have(log: Path, tmp_path: Path) -> None:
    data = Samples.open(log / "samples").data.model_copy(update={"history_columns": ["brand_id"], "peer_columns": []})
    prepare(data, TextConfig(vocab_size=600), log / "raw", tmp_path / "samples", progress=False)
    samples = Samples.open(tmp_path / "samples")
    scorer = TreesScorer(samples, ["train"], TreesConfig(rounds=1, bag=1))
    columns = next(samples.columns("test", scorer._features.columns(samples.data)))
    features = scorer._features(columns, np.zeros(len(candidate_requests(columns)), bool))
    compared = {name.removesuffix("_surplus") for name in features if name.endswith("_surplus")}
    assert {name for name in compared if name.startswith(("history_", "peer_"))} == {
        "history_item_id",
        "history_brand_id",
        "peer_item_id",
    }
