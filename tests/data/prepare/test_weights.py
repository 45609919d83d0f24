"""What candidates count in training: weights of the log, and those of requests that stand for others without a click."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepared_logs import SMALL, run
from raw_logs import Raw, random_log, read_split

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.prepare.summary import format_summary
from prectr_torchrec.data.raw.source import RawLogError

REQUESTS = 400
KEEP = {"keep_unclicked": 0.3}
ROW = dict[str, Any]


def weighted_log() -> Raw:
    raw, rng = random_log(3), np.random.default_rng(0)
    for event in raw["impressions"]:
        event["worth"] = float(rng.integers(0, 4))
    return raw


def with_text_ids(raw: Raw) -> Raw:
    return raw | {"impressions": [e | {"request_id": f"{e['request_id']}"} for e in raw["impressions"]]}


def settings(**more: Any) -> DataConfig:
    return DataConfig.model_validate(SMALL | more)


@pytest.fixture(scope="module")
def raw() -> Raw:
    log, rng = random_log(1, requests=REQUESTS), np.random.default_rng(1)
    for event in log["impressions"]:
        event["click"] = int(rng.random() < 0.15)
    return log


@pytest.fixture(scope="module")
def whole(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> list[ROW]:
    folder = tmp_path_factory.mktemp("whole")
    run(raw, folder, settings())
    return read_split(folder / "out", "train")


@pytest.fixture(scope="module")
def kept(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> tuple[ROW, list[ROW]]:
    folder = tmp_path_factory.mktemp("kept")
    return run(raw, folder, settings(**KEEP)), read_split(folder / "out", "train")


def test_weights_of_train_are_those_of_the_log_over_their_mean(tmp_path: Path) -> None:
    raw = weighted_log()
    manifest = run(raw, tmp_path, settings(weight="worth"))
    weights = {(e["request_id"], e["item_id"]): e["worth"] for e in raw["impressions"] if e["timestamp"] < 20}
    assert manifest["mean_weight"] == pytest.approx(np.mean(list(weights.values())))
    found = {
        (row["request_id"], item): weight
        for row in read_split(tmp_path / "out", "train")
        for item, weight in zip(row["candidate_item_id"], row["candidate_sample_weight"], strict=True)
    }
    assert found == pytest.approx({key: weight / manifest["mean_weight"] for key, weight in weights.items()})
    for split in ("validation", "test", "judgments"):
        assert {w for row in read_split(tmp_path / "out", split) for w in row["candidate_sample_weight"]} == {1.0}


def test_without_weights_samples_have_no_column_of_them(raw: Raw, whole: list[ROW]) -> None:
    assert whole and "candidate_sample_weight" not in whole[0]


BAD: dict[str, tuple[Any, str]] = {
    "text": ("heavy", "'heavy'"),
    "negative": (-0.5, "-0.5"),
    "infinite": (math.inf, "inf"),
    "missing": (None, "None"),
}


@pytest.mark.parametrize(("value", "shown"), BAD.values(), ids=BAD)
def test_a_wrong_weight_is_named_by_file_and_row(tmp_path: Path, value: Any, shown: str) -> None:
    raw = random_log(0)
    for row, event in enumerate(raw["impressions"]):
        event["worth"] = value if row == 2 else "1" if isinstance(value, str) else 1.0
    expected = rf"impressions\.parquet: column 'worth', row 3: {shown}; expected a weight, a number from 0 to "
    with pytest.raises(RawLogError, match=expected):
        run(raw, tmp_path, settings(weight="worth"))


def test_weights_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    raw = weighted_log()
    raw["impressions"] = [event | {"worth": 0.0} for event in raw["impressions"]]
    with pytest.raises(RawLogError, match=r"data\.weight: all candidates of the train part have weight 0 in column 'worth'"):
        run(raw, tmp_path, settings(weight="worth"))


@pytest.mark.parametrize("name", ["click", "order", "hour"])
def test_a_weight_is_a_column_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"weight: '{name}' is a column of .* too; give it another name"):
        settings(weight=name, labels={"order": {}}, columns={"requests": {"hour": "number"}})


def test_kept_requests_are_as_they_were_and_know_those_left_out(kept: tuple[ROW, list[ROW]], whole: list[ROW]) -> None:
    before = {row["request_id"]: row for row in whole}
    manifest, rows = kept
    for row in rows:
        weights = row.pop("candidate_sample_weight")
        assert row == before[row["request_id"]]  # histories, peers and counters among it
        row["candidate_sample_weight"] = weights
    left_out = before.keys() - {row["request_id"] for row in rows}
    assert 0 < len(left_out) == manifest["left_out"]["requests"]
    assert not any(sum(before[request]["candidate_click"]) for request in left_out)
    lines = "\n".join(format_summary(manifest, settings(**KEEP)))
    assert f"left out of train: {len(left_out)} requests without a click or label" in lines
    assert "the 30.0 % that are kept count for them (data.keep_unclicked)" in lines


def test_weights_keep_the_click_rate(kept: tuple[ROW, list[ROW]], whole: list[ROW]) -> None:
    manifest, rows = kept
    clicks, weights = (np.concatenate([row[f"candidate_{name}"] for row in rows]) for name in ("click", "sample_weight"))
    assert weights.mean() == pytest.approx(1.0, abs=1e-6)
    scale = manifest["mean_weight"]
    clicked = [bool(sum(row["candidate_click"])) for row in rows]
    for row, has_click in zip(rows, clicked, strict=True):
        assert row["candidate_sample_weight"] == pytest.approx([(1 if has_click else 1 / 0.3) / scale] * row["num_candidates"])
    of_all = np.concatenate([row["candidate_click"] for row in whole])
    unclicked = sum(not sum(row["candidate_click"]) for row in whole)
    drawn = (len(clicked) - sum(clicked)) / unclicked
    assert abs(drawn - 0.3) < 4 * math.sqrt(0.3 * 0.7 / unclicked)
    assert clicks.mean() > 1.3 * of_all.mean()
    deviation = math.sqrt(0.7 / 0.3 / unclicked) * (1 - of_all.mean())
    assert abs(np.average(clicks, weights=weights) / of_all.mean() - 1) < 4 * deviation


def test_text_ids_and_whole_numbers_are_drawn_alike_and_a_smaller_share_from_a_larger_one(
    raw: Raw, kept: tuple[ROW, list[ROW]], tmp_path: Path
) -> None:
    run(with_text_ids(raw), tmp_path / "text", settings(**KEEP))
    run(raw, tmp_path / "less", settings(keep_unclicked=0.1))
    drawn = [(row["timestamp"], row["query"], row["candidate_item_id"]) for row in kept[1]]
    texts = [(row["timestamp"], row["query"], row["candidate_item_id"]) for row in read_split(tmp_path / "text" / "out", "train")]
    assert sorted(texts) == sorted(drawn)
    less = {row["request_id"] for row in read_split(tmp_path / "less" / "out", "train")}
    assert less < {row["request_id"] for row in kept[1]}
    assert "candidate_sample_weight" in pq.read_schema(tmp_path / "less" / "out" / "test" / "part-00000.parquet").names


def test_a_label_without_a_click_of_its_own_keeps_a_request(tmp_path: Path) -> None:
    raw = random_log(2)
    for event in raw["impressions"]:
        event |= {"click": 0, "order": int(event["request_id"] % 5 == 0)}
    run(raw, tmp_path, settings(keep_unclicked=0.001, labels={"order": {}}))
    assert {row["request_id"] % 5 for row in read_split(tmp_path / "out", "train")} == {0}
