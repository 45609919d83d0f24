"""A configuration guessed from a log's files prepares that log as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from make_shop import write_csv, write_export
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app
from prectr_torchrec.cli.preflight import check_training
from prectr_torchrec.config.data import ColumnsConfig, LabelColumn
from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.guess.commented import commented_yaml
from prectr_torchrec.data.guess.guess import write_guess
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.raw.source import RawLogError, open_duckdb
from prectr_torchrec.data.raw.tables import load_tables, open_sources
from prectr_torchrec.data.simulate.simulate import simulate

SEARCH_LOG = Path(__file__).parents[4] / "shared" / "data" / "search_log" / "raw"


def guessed(raw: Path, folder: Path, **given: str) -> RunConfig:
    """The configuration, after a preparation without an edit that a training would take."""
    write_guess(raw, folder / "mine.yaml", {name.replace("__", "."): value for name, value in given.items()})
    config = load_config(folder / "mine.yaml")
    prepare(config.data, config.text, raw, folder / "samples", progress=False)
    check_training(config, folder / "samples")
    return config


def declared(columns: ColumnsConfig) -> dict[str, Any]:
    return {place: found for place, found in columns.model_dump(mode="json", exclude_defaults=True).items() if found}


def test_a_shop_s_csv_files(tmp_path: Path) -> None:
    write_export(tmp_path / "shop", 240)
    config = guessed(tmp_path / "shop", tmp_path)
    assert declared(config.data.columns) == {
        "items": {"price": {"number": {}}, "listed_at": {"time": {"transform": "log1p"}}, "tags": {"ids": {"separator": "|"}}},
        "impressions": {"engine_score": {"number": {}}},
    }
    assert config.data.labels == {
        "cart": LabelColumn(action="add_to_cart"),
        "order": LabelColumn(after="cart", action="purchase"),
    }
    assert config.data.raw.impressions.delimiter == ";" and config.data.raw.queries is None


def test_a_simulated_log_with_labels_and_columns_of_its_own(tmp_path: Path) -> None:
    simulate(tmp_path / "log", requests=300, users=30, queries=20, items=120, labels=1, price=1, tags=1)
    config = guessed(tmp_path / "log" / "raw", tmp_path)
    assert {name: label.time for name, label in config.data.labels.items()} == {
        "click": "click_time",
        "cart": "cart_time",
        "order": "order_time",
    }
    assert declared(config.data.columns) == {"items": {"price": {"number": {}}, "tags": {"ids": {}}}}
    assert config.data.raw.judgments is not None


@pytest.mark.skipif(not SEARCH_LOG.exists(), reason="the search log is not beside the checkout")
def test_the_search_log(tmp_path: Path) -> None:
    write_guess(SEARCH_LOG, tmp_path / "mine.yaml")
    config = load_config(tmp_path / "mine.yaml")
    assert config.tables["item"].rows >= 54_667
    with open_duckdb() as con:  # what preparation refuses, it refuses here
        report = load_tables(con, config.data, open_sources(con, config.data, SEARCH_LOG))
    assert report["rows"]["impressions"] == 289_208


def write_parts(folder: Path, columns: dict[str, Any], parts: int = 4) -> None:
    table = pa.table(columns)
    folder.mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    size = -(-table.num_rows // parts)
    for number in range(parts):
        pq.write_table(table.slice(number * size, size), folder / f"part-{number:05}.parquet")


def write_folders(raw: Path) -> None:
    """A log of many Parquet files, each table a folder, names in camel case, columns of every kind."""
    rng, n, items = np.random.default_rng(0), 600, 60
    request = np.repeat(np.arange(n // 3), 3)
    click = (rng.random(n) < 0.3).astype(np.int64)
    write_parts(
        raw / "impressions",
        {
            "searchId": request,
            "ts": pa.array(1_777_593_600 + request * 600).cast(pa.timestamp("s")),
            "visitorId": [f"v{number % 20}" for number in request],
            "queryId": request % 9,
            "articleId": np.concatenate([rng.choice(items, 3, replace=False) for _ in range(n // 3)]),
            "clicked": click,
            "device": [("phone", "desk", None)[number % 3] for number in request],
            "bm25 score": rng.random(n) * 20,
            "dwell_seconds": np.where(click == 1, 30.0, 0.0),
        },
    )
    write_parts(
        raw / "articles",
        {
            "id": np.arange(items),
            "name": [f"name of {number}" for number in range(items)],
            "picture": [rng.random(8).tolist() for _ in range(items)],
            "colour": [("red", "blue", None)[number % 3] for number in range(items)],
            "materials": [["oak", "steel"][: number % 3] for number in range(items)],
            "stock": [int(number**4) for number in range(items)],
            "description": [f"a text that is as long as texts are that nobody would take for an id {n}" for n in range(items)],
            "warehouse": ["one"] * items,
        },
    )
    write_parts(raw / "queries", {"qid": np.arange(9), "text_length": np.arange(9), "q": [f"text {n}" for n in range(9)]}, 2)
    since = [f"2025-01-{n + 1:02}" for n in range(20)]
    note = [f"a customer of whom there is much to say, such as the number {n}" for n in range(20)]
    write_parts(raw / "customers", {"visitorId": [f"v{n}" for n in range(20)], "since": since, "note": note})
    pairs = np.array([(query, item) for query in range(9) for item in range(0, items, 4)])
    grades = rng.integers(0, 5, len(pairs))
    write_parts(raw / "qrels", {"qid": pairs[:, 0], "articleId": pairs[:, 1], "grade": grades}, 1)


def test_folders_of_many_parquet_files_with_columns_of_every_kind(tmp_path: Path) -> None:
    write_folders(tmp_path / "raw")
    config = guessed(tmp_path / "raw", tmp_path)
    assert declared(config.data.columns) == {
        "users": {"since": {"time": {"transform": "log1p"}}},
        "queries": {"text_length": {"number": {}}},
        "requests": {"device": {"id": {}}},
        "items": {
            "picture": {"vector": {"width": 8}},
            "colour": {"id": {}},
            "materials": {"ids": {}},
            "description": {"text": {}},
            "stock": {"number": {"transform": "log1p"}},
        },
        "impressions": {"bm25_score": {"number": {}}},
    }
    assert config.data.levels.level_grades == [0, 1, 2, 3, 4]
    assert config.data.item_attributes == [] and "brand" not in config.tables
    left = (tmp_path / "mine.yaml").read_text(encoding="utf-8").partition("# Left out:")[2]
    assert "dwell_seconds: it has values only where there was a click" in left
    assert config.model.parts.further_match is not None
    assert "note: long texts are read of items alone" in left and "warehouse: it has one value" in left


def test_files_of_one_name_but_for_a_number_are_one_table(tmp_path: Path) -> None:
    write_folders(tmp_path / "folders")
    raw = tmp_path / "raw"
    raw.mkdir()
    for file in (tmp_path / "folders").rglob("*.parquet"):
        file.rename(raw / f"{file.parent.name}-{file.stem[-2:]}.parquet")
    assert guessed(raw, tmp_path).data.raw.impressions.path == "impressions-*.parquet"


def test_what_is_said_of_a_column_goes_before_its_name(tmp_path: Path) -> None:
    write_export(tmp_path / "shop", 240)
    products = tmp_path / "shop" / "products.csv"
    products.write_text(products.read_text(encoding="utf-8").replace("name,", "bezeichnung,", 1), encoding="utf-8")
    with pytest.raises(RawLogError, match=r"Nearest is products\.csv, in which .* looks like title.*--map items\.title=COLUMN"):
        write_guess(tmp_path / "shop", tmp_path / "mine.yaml")
    config = guessed(tmp_path / "shop", tmp_path, items__title="bezeichnung")
    assert config.data.raw.items.columns["title"] == "bezeichnung"


ROW = {"request_id": 1, "timestamp": 1_777_593_600, "user_id": 1, "query": "oak", "item_id": 1, "click": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"timestamp": 1_777_593_600_123}, r"impressions\.csv: column 'timestamp' looks like the timestamp.*no milliseconds"),
        ({"click": 7}, r"impressions\.csv: column 'click' looks like the click of impressions.*expected 0 or 1"),
        ({"click": None}, r"impressions\.csv: column 'click' .* 1 of its 1 values are none"),
    ],
)
def test_a_time_or_click_that_cannot_be_read_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    write_csv(tmp_path / "impressions.csv", ",", [ROW | row])
    write_csv(tmp_path / "items.csv", ",", [{"item_id": 1, "title": "Oak shelf"}])
    with pytest.raises(RawLogError, match=message):
        write_guess(tmp_path, tmp_path / "mine.yaml")
    assert not (tmp_path / "mine.yaml").exists()


def test_a_log_without_clicks_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "impressions.csv", ",", [{name: value for name, value in ROW.items() if name != "click"}])
    write_csv(tmp_path / "items.csv", ",", [{"item_id": 1, "title": "Oak shelf"}])
    with pytest.raises(RawLogError, match=r"no column looks like the click \(0 or 1\), and no file has actions.*--map"):
        write_guess(tmp_path, tmp_path / "mine.yaml")


def test_a_folder_of_several_tables_names_the_folders_that_may_be_meant(tmp_path: Path) -> None:
    simulate(tmp_path / "log", requests=20, users=5, queries=5, items=30)
    with pytest.raises(RawLogError, match=r"holds several tables.*if the log lies in one folder.*log/eval, .*log/raw"):
        write_guess(tmp_path / "log", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such folder"),
        ([".", "--map", "items"], "write it as TABLE=FILE or TABLE.COLUMN=NAME"),
        ([".", "--map", "prices=x"], "'prices' is nothing that a log has (valid: impressions"),
        ([".", "--map", "items=x"], "there is no such file or folder; there are items.csv"),
        ([".", "--map", "items.title=x"], "no file has a column 'x'"),
        ([".", "--out", "items.csv"], "is there already"),
    ],
)
def test_a_mistake_in_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "items.csv", ",", [{"item_id": 1, "title": "Oak shelf"}])
    done = CliRunner().invoke(app, ["init", *arguments])
    assert message in str(done.exception)


def test_commented_yaml_is_the_same_yaml() -> None:
    tree = {"a": {"b": {"c: d": ["#", "'x'"], "e": None}, "f": 1.0}, "g": "# no comment"}
    text = commented_yaml(tree, {("a", "b", "e"): "why", ("g",): "because"})
    assert yaml.safe_load(text) == tree
    assert text.count("# why") == text.count("# because") == 1
