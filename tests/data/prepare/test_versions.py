"""Items that change: a request and its past see the rows that held then, as the slow reference does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, delay_labels, random_log, read_split, reference_rows, write_table

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.data.raw.source import RawLogError

COLUMNS: dict[str, Any] = {"items": {"price": "number", "image": {"vector": 2}, "tags": {"ids": {"separator": "|"}}}}
DATA: dict[str, Any] = {**SMALL, "valid_from": "since"}


def log_of_changes(seed: int, *, text_ids: bool = False) -> Raw:
    """One to three rows an item, in any order; some items are shown before their first one."""
    raw, rng = random_log(seed, text_ids=text_ids), np.random.default_rng(seed)
    rows = []
    for item in raw["items"]:
        for number, since in enumerate(rng.choice(40, rng.integers(1, 4), replace=False).tolist()):
            changed = {"title": f"{item['title']} {number}", "category_id": int(rng.integers(0, 4)) or None, "since": since}
            rows.append({**item, **changed, "price": float(since), "image": [float(since), 1.0], "tags": f"a|{since}"})
    return raw | {"items": [rows[place] for place in rng.permutation(len(rows))]}


def early(raw: Raw) -> int:
    """Impressions before the first row of their item."""
    first = {item["item_id"]: min(r["since"] for r in raw["items"] if r["item_id"] == item["item_id"]) for item in raw["items"]}
    return sum(event["timestamp"] < first[event["item_id"]] for event in raw["impressions"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("settings", [{}, {"history_events": "clicked", "feedback_delay": 3}], ids=["shown", "clicked late"])
def test_every_field_equals_the_slow_reference(tmp_path: Path, seed: int, settings: dict[str, Any]) -> None:
    raw = delay_labels(log_of_changes(seed, text_ids=seed == 1), 15, seed)
    data = DataConfig.model_validate(DATA | settings)
    manifest = run(raw, tmp_path, data)
    for found, expected in zip(labelled_rows(tmp_path), reference_rows(raw, data), strict=True):
        assert found == expected
    assert manifest["mended"]["impressions before the first row of their item, which was taken"] == early(raw) > 0
    assert manifest["summary"]["tables"]["items"] == {"in": len(raw["items"]), "out": len(raw["items"])}


def test_declared_columns_are_those_of_then_and_vectors_those_of_the_last_row(tmp_path: Path) -> None:
    raw = log_of_changes(0)
    data = DataConfig(**DATA, columns=COLUMNS)
    manifest = run(raw, tmp_path, data)
    for row in labelled_rows(tmp_path):
        for item, price, tags in zip(*(row[f"candidate_{name}"] for name in ("item_id", "price", "tags")), strict=True):
            times = sorted(r["since"] for r in raw["items"] if as_id(r["item_id"]) == item)
            held = max((since for since in times if since <= row["timestamp"]), default=times[0])
            assert price == held and tags == [as_id("a"), as_id(str(held))]
    last = {as_id(r["item_id"]): r["since"] for r in sorted(raw["items"], key=lambda r: r["since"])}
    vectors = ItemVectors.of(data, tmp_path / "out" / ITEM_VECTORS)
    assert vectors.rows("image", np.array([*last]))[:, 0].tolist() == [*last.values()]
    assert manifest["numbers"]["candidate_price"]["missing"] == manifest["numbers"]["candidate_image"]["missing"] == 0
    judged = read_split(tmp_path / "out", "judgments")  # of no time: the last row
    for row in judged:
        assert row["candidate_price"] == [last[item] for item in row["candidate_item_id"]]


def test_candidate_sets_have_the_rows_of_their_requests_times(tmp_path: Path) -> None:
    raw = log_of_changes(1)
    event = raw["impressions"][0]
    given = [{"request_id": event["request_id"], "item_id": item} for item in sorted({r["item_id"] for r in raw["items"]})]
    write_table(given, tmp_path / "given.parquet")
    data = DataConfig(**DATA, columns=COLUMNS)
    run(raw, tmp_path, data, candidates=tmp_path / "given.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    for item, price in zip(row["candidate_item_id"], row["candidate_price"], strict=True):
        times = sorted(r["since"] for r in raw["items"] if as_id(r["item_id"]) == item)
        assert price == max((since for since in times if since <= event["timestamp"]), default=times[0])


def test_one_row_an_item_that_always_held_changes_nothing(tmp_path: Path) -> None:
    raw = random_log(2)
    plain = [{**item, "since": 0} for item in raw["items"]]
    run(raw, tmp_path / "a", DataConfig(**SMALL))
    run(raw | {"items": plain}, tmp_path / "b", DataConfig(**DATA))
    assert labelled_rows(tmp_path / "a") == labelled_rows(tmp_path / "b")


def test_two_rows_of_one_item_need_times_that_differ(tmp_path: Path) -> None:
    raw = log_of_changes(0)
    with pytest.raises(
        RawLogError, match=r"items\.parquet: rows \d+ and \d+ have the same \(item_id\).*or data\.valid_from names"
    ):
        run(raw, tmp_path / "a", DataConfig(**SMALL))
    raw["items"].append(raw["items"][3])
    with pytest.raises(RawLogError, match=r"rows 4 and \d+ have the same \(item_id, since\) = .*; it may be there only once$"):
        run(raw, tmp_path / "b", DataConfig(**DATA))
    raw["items"][-1] = raw["items"][-1] | {"since": None}
    with pytest.raises(RawLogError, match=r"items\.parquet: column 'since', row \d+: None; expected seconds"):
        run(raw, tmp_path / "c", DataConfig(**DATA))
    with pytest.raises(
        ValueError, match=r"valid_from: 'price' is an attribute, or one of data\.columns\.items; give it another name"
    ):
        DataConfig(**SMALL, columns=COLUMNS, valid_from="price")
