"""Ids of text from the raw log through a run to everything that tells of a row: they come out as the log writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import Raw, random_log, read_split, write_log, write_table
from small_run import small_config
from typer.testing import CliRunner

from prectr_torchrec import Ranker
from prectr_torchrec.cli.main import app
from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.config.train import InitFromConfig
from prectr_torchrec.data.hashing import ZERO_ID, hash_id
from prectr_torchrec.data.log_ids import LogIds, our_id_sql
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.raw.source import open_duckdb
from prectr_torchrec.data.schema import MANIFEST
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain, format_explanation
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.page import DemoPage, render
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.training.trainer import Trainer

DATA: dict[str, Any] = {
    "history_length": 4,
    "peer_length": 5,
    "peer_minimum": 3,
    "split": {"validation_from": 20, "test_from": 30},
    "columns": {},
}


class Job(NamedTuple):
    raw: Raw
    run: Path
    data: Path
    model: Path

    def of_test(self, column: str) -> list[str]:
        """The log's ids of the test part, sorted."""
        return sorted({event[column] for event in self.raw["impressions"] if event["timestamp"] >= 30})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    root, raw = tmp_path_factory.mktemp("ids"), random_log(3, text_ids=True)
    for event in raw["impressions"]:
        event["request_id"] = f"réq-{event['request_id']}"
    stages = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}]}
    config = small_config(data=DATA, text={"vocab_size": 300}, train=stages, model={"parts": {"numbers": None}})
    prepare(config.data, config.text, write_log(raw, root / "raw"), root / "data", progress=False)
    with process_group("cpu") as process:
        Trainer(config, root / "data", root / "run", process).train()
    export(root / "run", root / "model", checkpoint="last")
    return Job(raw, root / "run", root / "data", root / "model")


def test_predictions_have_them_and_are_measured_against_an_oracle_with_them(job: Job, tmp_path: Path) -> None:
    events = [event for event in job.raw["impressions"] if event["timestamp"] >= 30]
    oracle = [{"request_id": e["request_id"], "item_id": e["item_id"], "probability": 0.5} for e in events]
    write_table(oracle, tmp_path / "oracle.parquet")
    files = {"--predictions": tmp_path / "p.parquet", "--metrics": tmp_path / "m.json", "--oracle": tmp_path / "oracle.parquet"}
    given = [str(word) for pair in files.items() for word in pair]
    evaluate(["--run", str(job.run), "--data", str(job.data), "--checkpoint", "last", *given])
    found = pq.read_table(tmp_path / "p.parquet").to_pylist()
    keys = ("request_id", "user_id", "query_id", "item_id")
    assert sorted(tuple(row[k] for k in keys) for row in found) == sorted(tuple(event[k] for k in keys) for event in events)
    measured = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert measured["oracle"]["unmatched_rows"] == measured["oracle"]["unmatched_predictions"] == 0
    assert measured["requests"] == len(job.of_test("request_id"))


def test_pairs_without_a_request_have_their_querys(job: Job, tmp_path: Path) -> None:
    files = ["--predictions", str(tmp_path / "p.parquet"), "--metrics", str(tmp_path / "m.json")]
    evaluate(["--run", str(job.run), "--data", str(job.data), "--checkpoint", "last", "--split", "judgments", *files])
    found = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert found and all(row["request_id"] == row["query_id"] and row["user_id"] is None for row in found)
    judged = {(row["query_id"], row["item_id"]) for row in job.raw["judgments"]}
    assert {(row["query_id"], row["item_id"]) for row in found} <= judged


def test_explain_takes_and_tells_them(job: Job) -> None:
    wanted = job.of_test("request_id")[0]
    done = CliRunner().invoke(
        app, ["explain", "--run", str(job.run), "--data", str(job.data), "--request", wanted, "--checkpoint", "last"]
    )
    assert done.exit_code == 0, done.output
    of_request = [event for event in job.raw["impressions"] if event["request_id"] == wanted]
    assert done.output.startswith(f"request {wanted} of test: ") and f"by user {of_request[0]['user_id']};" in done.output
    found = explain(job.run, job.data, wanted, checkpoint="last")
    assert {row["item_id"] for row in found["candidates"]} == {event["item_id"] for event in of_request}
    events = found["own_history"]["strongest"] + found["peers"]["strongest"]
    assert events and {event["query_id"] for event in events} <= {row["query_id"] for row in job.raw["queries"]}
    assert format_explanation(found).count("réq-") == 1


def test_an_unknown_request_is_answered_with_one_as_the_log_writes_it(job: Job) -> None:
    with pytest.raises(ValueError, match=r"no request nobody in this split; one that is there: réq-\d+$"):
        explain(job.run, job.data, "nobody")


def test_scores_of_sample_files_have_them(job: Job, tmp_path: Path) -> None:
    rows = score_files(job.model, job.data / "test", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet")
    assert len(found) == rows and sorted(set(found["request_id"].to_pylist())) == job.of_test("request_id")
    ids, samples = LogIds.of_split(job.data / "test"), read_split(job.data, "test")
    items = [item for row in samples for item in row["candidate_item_id"]]
    names = ids.restore("item_id", items)
    assert found["item_id"].to_pylist() == [names[item] for item in items]


def test_a_ranker_answers_with_the_ids_that_it_was_sent(job: Job) -> None:
    item, query = job.raw["items"][0]["item_id"], job.raw["queries"][0]["query_id"]
    request = {
        "request_id": "réq-9",
        "user_id": "user1",
        "query": "query 1",
        "query_id": query,
        "history": [{"item_id": item, "query_id": query, "title": "x", "click": 1}, {"item_id": "never seen", "query_id": query}],
        "candidates": {"item_id": [item, "new"], "title": ["a", "b"]},
    }
    ranker = Ranker.load(job.model)
    scores = ranker.score(request, explain=True)
    assert scores.request_id == "réq-9" and scores.item_id.tolist() == [item, "new"]
    assert scores.explanation is not None
    assert {row["item_id"] for row in scores.explanation["candidates"]} == {item, "new"}
    events = scores.explanation["own_history"]["strongest"]
    assert {(event["item_id"], event["query_id"]) for event in events} == {(item, query), ("never seen", query)}
    table = pa.table({"query": ["query 1"], "request_id": ["réq-9"], "candidate_item_id": [[item, "new"]]})
    assert ranker.score(table).select(["request_id", "item_id"]).to_pylist() == [
        {"request_id": "réq-9", "item_id": item},
        {"request_id": "réq-9", "item_id": "new"},
    ]


def test_the_page_shows_them(job: Job) -> None:
    ranker, demo = Ranker.load(job.model), DemoPage(job.data / "test")
    shown = demo.describe(ranker)
    assert {user["name"] for user in shown["users"]} <= set(job.of_test("user_id"))
    given = demo.samples(ranker, shown["queries"][0], int(shown["users"][0]["id"]))
    page = render(given, ranker.score_samples(given, [True, True]), [], demo.item_names)
    assert {row["item"] for row in page["personal"]} <= {row["item_id"] for row in job.raw["items"]}


@pytest.mark.parametrize("zero", ["none", "id"])
@pytest.mark.parametrize("kind", ["integer", "unsigned"])
def test_whole_numbers_go_in_and_come_out(tmp_path: Path, zero: Any, kind: str) -> None:
    ids = LogIds(tmp_path, {"item_id": kind}, zero)
    logs = [0, 5, 2**64 - 1 if kind == "unsigned" else -7]
    ours = [ids.parse("item_id", str(value)) for value in logs]
    assert ours[0] == (0 if zero == "none" else ZERO_ID) and ids.restore("item_id", ours) == dict(zip(ours, logs, strict=True))
    assert ids.restore("item_id", [0]) == {0: 0 if zero == "none" else None}
    with open_duckdb() as con:
        con.register("given", pa.table({"x": pa.array(logs, ids.arrow("item_id"))}))
        back = con.execute(f"SELECT {our_id_sql('x', ids.arrow('item_id'), zero)} FROM given").fetchall()
    assert [value for (value,) in back] == ours
    with pytest.raises(ValueError, match=r"item_id 'lamp': the log's are whole numbers"):
        ids.parse("item_id", "lamp")


def test_unsigned_ids_come_out_of_a_log_as_they_went_in(tmp_path: Path) -> None:
    folder = write_log(random_log(1), tmp_path / "raw")
    for name in ("items", "impressions", "judgments"):
        table = pq.read_table(folder / f"{name}.parquet")
        high = pa.array(table["item_id"].to_numpy().astype(np.uint64) + np.uint64(2**63))
        pq.write_table(table.set_column(table.schema.get_field_index("item_id"), "item_id", high), folder / f"{name}.parquet")
    data = DataConfig(split=Split(validation_from=20, test_from=30))
    assert (
        prepare(data, TextConfig(vocab_size=300), folder, tmp_path / "out", progress=False)["id_kinds"]["item_id"] == "unsigned"
    )
    ids, item = LogIds.of_split(tmp_path / "out" / "test"), read_split(tmp_path / "out", "test")[0]["candidate_item_id"][0]
    assert item < 0 and ids.restore("item_id", [item]) == {item: item + 2**64}


def test_ids_of_text_that_are_gone_are_missed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ids/item_id.parquet: there is no such file, .*; run `prectr prepare` again"):
        LogIds(tmp_path, {"item_id": "text"}).restore("item_id", [hash_id("lamp")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"examination": [1.0, 0.4]},
            r"positions are examined by \[1.0, 0.4\], in the samples of .*; prepare again with data.examination: \[1.0\]",
        ),
        ({"id_kinds": {"item_id": "integer"}}, r"item_id is read as integer, in the samples of .* as text, so no id would"),
    ],
)
def test_samples_of_other_findings_are_refused(job: Job, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(job.data, other)
    manifest = json.loads((other / MANIFEST).read_text(encoding="utf-8"))
    kinds = {"id_kinds": manifest["id_kinds"] | change.get("id_kinds", {})}
    (other / MANIFEST).write_text(json.dumps(manifest | change | kinds), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        evaluate(["--run", str(job.run), "--data", str(other), "--checkpoint", "last"])
    with pytest.raises(ValueError, match=message):
        explain(job.run, other, job.of_test("request_id")[0], checkpoint="last")
    with pytest.raises(ValueError, match=message):
        score_files(job.model, other / "test", tmp_path / "scores.parquet")
    with process_group("cpu") as process, pytest.raises(ValueError, match=message):
        Trainer(load_run(job.run), other, job.run, process)


def test_tables_of_ids_that_are_read_otherwise_are_not_taken_over(job: Job, tmp_path: Path) -> None:
    log = write_log(random_log(3), tmp_path / "raw")
    config = load_run(job.run)
    prepare(config.data, TextConfig(path=str(job.data / "tokenizer")), log, tmp_path / "data", progress=False)
    config.train.init_from = InitFromConfig(run=str(job.run), checkpoint="last", include=["tables.item"])
    message = r"_id is read as integer, in the samples of .* as text"
    with process_group("cpu") as process, pytest.raises(ValueError, match=message):
        Trainer(config, tmp_path / "data", tmp_path / "run", process)
