"""A ranker without a relevance tower goes through every command: nothing on the way asks for levels that it does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving.test_server import TOKEN, serving
from serving_requests import plain_requests
from small_job import prectr
from small_run import MIXED, small_config, write_small_data

from prectr_torchrec.config.files import dump_config

KINDS: dict[str, dict[str, Any]] = {
    "dnn": {"model": {"kind": "dnn", "tower": [16]}},
    "mixed": {**MIXED, "model": {**MIXED["model"], "relevance": False}},
}
"""Kind -> sections of its configuration."""
REPORTED = {"mixed": {"user_effect", "query_effect", "group_effect", "item_effect"}}
"""What it reports of each candidate."""


class Job(NamedTuple):
    kind: str
    config: Path
    data: Path
    run: Path
    exported: Path


@pytest.fixture(scope="module", params=KINDS)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Trained, evaluated and exported, a command each."""
    folder, kind = tmp_path_factory.mktemp("kind"), request.param
    stages = [{"split": split, "epochs": 1, "lr": 0.003, "warmup_steps": 2} for split in ("judgments", "train")]
    sections = {"losses": {"random_negatives": {"weight": 0.0}}, "train": {"stages": stages}}
    config = small_config(**sections | KINDS[kind])
    found = Job(
        kind, folder / "config.yaml", write_small_data(folder / "data", config, requests=40), folder / "run", folder / "out"
    )
    found.config.write_text(dump_config(config), encoding="utf-8")
    printed = prectr("train", "--config", found.config, "--data", found.data, "--run", found.run)
    assert f"stage 'judgments' is left out: a ranker of kind '{kind}' has no levels to learn" in printed
    prectr("evaluate", "--run", found.run, "--data", found.data)
    prectr("export", "--run", found.run, "--out", found.exported)
    return found


def test_it_learns_and_is_measured_without_levels(job: Job) -> None:
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"bce"} == {name for line in lines for name in line} & {"bce", "anchor", "consistency", "load_balance"}
    columns = pq.read_schema(job.run / "predictions-test.parquet").names
    assert "relevance_probabilities" not in columns and not [name for name in columns if name.startswith("effect_")]
    measured = json.loads((job.run / "metrics-test.json").read_text(encoding="utf-8"))
    assert measured["relevance"] == {} and measured["clicks"]["auc"] > 0
    assert measured["parts"].keys() - {"logit_of_means", "examination"} == REPORTED.get(job.kind, set())


def test_it_is_reported_and_explained(job: Job, tmp_path: Path) -> None:
    prectr("report", "--out", tmp_path / "report.html", job.run)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Comparison</h2>" in page and "Relevance tower" not in page
    request = pq.read_table(next((job.data / "test").glob("*.parquet")))["request_id"][0].as_py()
    text = prectr("explain", "--run", job.run, "--data", job.data, "--request", request)
    assert "click probability: what ranks" in text and "levels" not in text


def test_the_export_scores_as_the_run_and_has_no_titles_to_index(job: Job, tmp_path: Path) -> None:
    prectr("score", "--model", job.exported, "--data", job.data / "test", "--out", tmp_path / "scores.parquet")
    scores, predictions = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(job.run / "predictions-test.parquet")
    assert scores.column_names == ["request_id", "item_id", "click_probability"]
    np.testing.assert_allclose(scores["click_probability"].to_numpy(), predictions["click_probability"].to_numpy(), atol=1e-6)
    items = tmp_path / "items.parquet"
    pq.write_table(pq.read_table(next((job.data / "test").glob("*.parquet"))).select(["query"]), items)
    assert "there is nothing to keep" in prectr("index", "--model", job.exported, "--items", items, code=2)
    card = (job.exported / "README.md").read_text(encoding="utf-8")
    assert f"A search ranker of kind `{job.kind}`" in card and "and an encoder" not in card and "relevance" not in card


def test_it_is_served_and_shown_on_the_page(job: Job, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN, encoding="utf-8")
    (sample,) = plain_requests(pq.read_table(next((job.data / "test").glob("*.parquet"))).slice(0, 1))
    with serving(job.exported, token, "--demo-page", str(job.data / "test")) as server:
        status, answer = server.rank(sample, "?explain=true")
        assert status == 200 and answer["candidates"][0].keys() == {"item_id", "index", "click_probability"}
        assert answer["explanation"]["parts"].keys() == REPORTED.get(job.kind, set())
        assert len(answer["explanation"]["candidates"]) == len(sample["candidates"])
        reported = len(REPORTED.get(job.kind, ()))
        status, shown = server.call("/demo", json.dumps({"query": sample["query"], "user": "0"}).encode())
        assert status == 200 and {(row["relevance"], len(row["parts"])) for row in shown["plain"]} == {(None, reported)}


def test_what_needs_levels_is_refused_in_words(job: Job, tmp_path: Path) -> None:
    printed = prectr(
        *("train", "--config", job.config, "--data", job.data, "--run", tmp_path / "run"),
        *("--set", "losses.anchor.weight=0.3"),
        code=2,
    )
    assert f"losses.anchor: reads levels, which model.kind '{job.kind}' as it is set does not find" in printed
