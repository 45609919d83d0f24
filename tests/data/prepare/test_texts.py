"""Further texts of items: from the log to the samples, into the tokenizer, and where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, random_log

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.tokenizer import load_tokenizer

COLUMNS: dict[str, Any] = {"items": {"details": "text", "use": {"text": {"tokens": 8}}}}
DATA = DataConfig(**SMALL, columns=COLUMNS)


def log_with_texts() -> Raw:
    raw = random_log(4)
    for number, item in enumerate(raw["items"]):
        item["details"] = None if number % 4 == 0 else f"zweihander {number}"
        item["use"] = "garden" if number % 2 else ""
    return raw


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_samples_have_each_candidates_texts_and_the_tokenizer_their_words(tmp_path: Path, suffix: str) -> None:
    raw = log_with_texts()
    files = RawLog(**{name: RawTable(path=f"{name}.{suffix}") for name in raw})
    run(raw, tmp_path, DATA.model_copy(update={"raw": files}), suffix=suffix)
    items = {as_id(item["item_id"]): item for item in raw["items"]}
    rows = labelled_rows(tmp_path)
    assert rows
    for row in rows:
        shown = [items[item] for item in row["candidate_item_id"]]
        assert row["candidate_details"] == [item["details"] or "" for item in shown]
        assert row["candidate_use"] == [item["use"] for item in shown]
        assert not any(name in row for name in ("history_details", "peer_details"))
    assert "zweihander" in load_tokenizer(tmp_path / "out" / TOKENIZER).get_vocab()
    run(random_log(4), tmp_path / "without", DataConfig(**SMALL))
    assert "zweihander" not in load_tokenizer(tmp_path / "without" / "out" / TOKENIZER).get_vocab()


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    raw = log_with_texts()
    for item in raw["items"]:
        item["use"] = 7
    with pytest.raises(RawLogError, match=r"items\.parquet: column 'use' is BIGINT; expected text"):
        run(raw, tmp_path, DATA)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"queries": {"details": "text"}}, r"columns\.queries\.details: a text is one of items, beside their title"),
        ({"items": {"query": "text"}}, r"columns\.items\.query: this is the name of a column that the samples have anyway"),
        ({"items": {"details": {"text": {"tokens": 1}}}}, r"columns\.items\.details\.text\.tokens"),
    ],
)
def test_a_text_that_cannot_be_declared_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config({"name": "x", "data": {"columns": columns}}, "test")
