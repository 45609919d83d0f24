"""A log in two tables, searches and results, is prepared as the same log in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, delay_labels, random_log

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.config.unused import unused_settings
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.prepare.summary import format_summary
from prectr_torchrec.data.raw.source import RawLogError

OF_REQUESTS = ("timestamp", "user_id", "query_id", "query", "hour")
LABELS = {"click": {"time": "click_time"}, "cart": {"time": "cart_time"}, "order": {"after": "cart"}}
SETTINGS: dict[str, Any] = {
    **SMALL,
    "columns": {"requests": {"hour": "number"}, "impressions": {"engine": "id"}},
    "labels": LABELS,
    "weight": "heavy",
}


def whole(**options: Any) -> Raw:
    raw = delay_labels(random_log(5, **options), most=3)
    for event in raw["impressions"]:
        event |= {"hour": event["timestamp"] % 24, "engine": event["position"] % 3, "heavy": 1.0 + event["click"]}
    return raw


def in_two(raw: Raw) -> Raw:
    searches: dict[Any, dict[str, Any]] = {}
    for event in raw["impressions"]:
        searches[event["request_id"]] = {"request_id": event["request_id"], **{n: event[n] for n in OF_REQUESTS if n in event}}
    results = [{name: value for name, value in event.items() if name not in OF_REQUESTS} for event in raw["impressions"]]
    rest = {name: rows for name, rows in raw.items() if name != "impressions"}
    return {**rest, "searches": [*searches.values()], "results": results}


def config(suffix: str = "parquet", *, two: bool = True, **raw: Any) -> DataConfig:
    names = ["items", "queries", "judgments", *(("searches", "results") if two else ("impressions",))]
    tables = {name: {"path": f"{name}.{suffix}"} for name in names}
    return DataConfig.model_validate({**SETTINGS, "raw": {**tables, **raw}})


@pytest.mark.parametrize(("suffix", "text_ids"), [("parquet", False), ("csv", True)])
def test_samples_are_those_of_one_table(tmp_path: Path, suffix: str, text_ids: bool) -> None:
    raw = whole(text_ids=text_ids)
    run(raw, tmp_path / "one", config(suffix, two=False), suffix=suffix)
    split = in_two(raw)
    nowhere = {**split["searches"][0], "request_id": 10_000}
    lost = {**split["results"][0], "request_id": 10_001}
    split["searches"].append(nowhere)
    split["results"].append(lost)
    manifest = run(split, tmp_path / "two", config(suffix), suffix=suffix)
    assert labelled_rows(tmp_path / "two") == labelled_rows(tmp_path / "one")
    assert manifest["dropped"]["searches without results"] == manifest["dropped"]["results of an unknown request"] == 1
    tables = manifest["summary"]["tables"]
    assert tables["results"] == {"in": len(split["results"]), "out": len(raw["impressions"])}
    assert tables["searches"]["out"] == tables["searches"]["in"] - 1
    assert "impressions.hour" not in manifest["summary"]["empty"] and "searches.hour" in manifest["summary"]["empty"]
    assert any(line.startswith("searches ") for line in format_summary(manifest, config()))
    user = next(row["user_id"] for row in labelled_rows(tmp_path / "two") if row["user_id"])
    restored = LogIds.of_split(tmp_path / "two" / "out" / "train").restore("user_id", [user])[user]
    assert restored in {event["user_id"] for event in raw["impressions"]}


def test_queries_may_be_the_texts_of_the_searches(tmp_path: Path) -> None:
    raw = whole()
    texts = {query["query_id"]: query["query"] for query in raw.pop("queries")}
    for event in raw["impressions"]:
        event["query"] = texts[event["query_id"]].upper() if event["request_id"] % 2 else texts[event["query_id"]]
        del event["query_id"]
    raw["judgments"] = [{**row, "query": texts[row["query_id"]]} for row in raw["judgments"]]
    for row in raw["judgments"]:
        del row["query_id"]
    run(raw, tmp_path / "one", config(two=False, queries=None))
    run(in_two(raw), tmp_path / "two", config(queries=None))
    one, two = (labelled_rows(tmp_path / name) for name in ("one", "two"))
    for row in (*one, *two):
        row["query"] = row["query"].lower()  # it is spelt as most rows do, of searches or of shown items
    assert one == two


Change = Callable[[Raw], Any]
BAD: dict[str, tuple[Change, str]] = {
    "a time of a search": (
        lambda raw: raw["searches"][2].update(timestamp=-1),
        r"searches\.parquet: column 'timestamp', row 3: -1;",
    ),
    "a click": (lambda raw: raw["results"][1].update(click=2), r"results\.parquet: column 'click', row 2: 2; expected 0 or 1"),
    "a search twice": (
        lambda raw: raw["searches"].append(raw["searches"][0]),
        r"searches\.parquet: rows 1 and \d+ have the same \(request_id\)",
    ),
    "a result twice": (
        lambda raw: raw["results"].append(raw["results"][0]),
        r"results\.parquet: rows 1 and \d+ have the same \(request_id, item_id\)",
    ),
    "other requests": (
        lambda raw: [row.update(request_id=row["request_id"] + 10**6) for row in raw["searches"]],
        r"results\.parquet: \d+ of \d+ rows have a request_id that is not in searches\.parquet",
    ),
    "other queries": (
        lambda raw: [row.update(query_id=10**6) for row in raw["searches"]],
        r"searches\.parquet: \d+ of \d+ rows have a query_id that is not in queries\.parquet \(such as 1000000\)",
    ),
    "a click before it was shown": (
        lambda raw: raw["results"][0].update(click=1, click_time=raw["results"][0].pop("was") - 1),
        r"results\.parquet: column 'click_time', row 1: \d+, and timestamp is \d+; it cannot have happened before it was shown",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named_by_the_file_that_has_it(tmp_path: Path, change: Change, message: str) -> None:
    log = whole()
    for event in log["impressions"]:
        event["timestamp"] += 1
        for time in ("click_time", "cart_time"):
            event[time] = None if event[time] is None else event[time] + 1
    log["impressions"][0]["was"] = log["impressions"][0]["timestamp"]
    raw = in_two(log)
    change(raw)
    raw["results"][0].pop("was", None)
    with pytest.raises(RawLogError, match=message):
        run(raw, tmp_path, config())


def test_one_table_or_both_of_two() -> None:
    with pytest.raises(ValueError, match="searches is here without results; name both, or impressions"):
        DataConfig.model_validate({"raw": {"searches": {"path": "s.csv"}}})
    both = {"searches": {"path": "s.csv"}, "results": {"path": "r.csv"}}
    with pytest.raises(ValueError, match="impressions are here, and so are searches and results"):
        DataConfig.model_validate({"raw": {**both, "impressions": {"path": "i.csv"}}})
    data = DataConfig.model_validate({"raw": both})
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


def test_names_of_no_column_are_told_and_those_of_a_weight_are_known() -> None:
    mapped = {"path": "r.csv", "columns": {"heavy": "w", "engine": "e", "hour": "h"}}
    data = {**SETTINGS, "split": {}, "raw": {"searches": {"path": "s.csv"}, "results": mapped}}
    found = unused_settings(validate_config({"name": "x", "data": data}, "test"), {})
    (line,) = [line for line in found if line.startswith("data.raw.")]
    assert line.startswith("data.raw.results.columns.hour is not used: no column of ours has this name")
