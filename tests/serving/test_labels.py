"""A ranker with labels that follow the click, from training to a served ranking by what they are worth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from served_jobs import Exported, column, exported_job
from small_run import LABELS, small_config

from prectr_torchrec import Ranker, metrics
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain, format_explanation
from prectr_torchrec.evaluation.measures_text import format_metrics
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.serving.fields import RequestError
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.serving.server import RankingServer, ServerSettings

WORTH = {"click": 1.0, "order": 20.0}
STAGES = {"stages": [{"split": "train", "epochs": 2, "lr": 0.003, "warmup_steps": 2}]}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = small_config(train=STAGES, data={"labels": LABELS}, score=WORTH)
    return exported_job(tmp_path_factory.mktemp("labels"), config, requests=80)


@pytest.fixture(scope="module")
def ranker(job: Exported) -> Ranker:
    return Ranker.load(job.folder)


@pytest.fixture(scope="module")
def client(job: Exported) -> Iterator[TestClient]:
    settings = ServerSettings(deadline=60)
    with TestClient(RankingServer(job.folder, settings, demo=job.data / "test").app) as client:
        yield client


def test_evaluation_against_another_run_has_the_difference_of_each_label(
    job: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ["--predictions", str(tmp_path / "p.parquet"), "--metrics", str(tmp_path / "m.json")]
    evaluate(["--run", str(job.run), "--data", str(job.data), "--against", str(job.run), *written])
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["against"]
    assert found["run"] == "run" and list(found["labels"]) == ["click", *LABELS]
    assert found["labels"]["click"]["auc"]["interval"] == [0, 0]
    assert "click against run" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"nothing/predictions-test.parquet: no such predictions to compare with"):
        evaluate(["--run", str(job.run), "--data", str(job.data), "--against", str(tmp_path / "nothing"), *written])


def test_every_label_is_measured_as_the_click_is(job: Exported) -> None:
    assert list(job.measured["labels"]) == ["click", *LABELS]
    score = column(job.predictions, "score")
    ids = [job.predictions[name].to_numpy() for name in ("user_id", "request_id")]
    for label in LABELS:
        probability, logged = (column(job.predictions, f"{label}_probability{where}") for where in ("", "_at_position"))
        value, found = column(job.predictions, label), job.measured["labels"][label]
        known = ~np.isnan(value)
        assert 0 < found["positives"] == np.nansum(value) and found["rows"] == known.sum() < len(value)
        expected = metrics.ranking_metrics(probability.astype(np.float32), value, *ids, ranking=score)
        expected |= metrics.probability_metrics(logged, value)
        expected["positives"] = expected.pop("clicks")
        assert found == pytest.approx(expected, nan_ok=True)
        assert found["calibration"] == pytest.approx(logged[known].sum() / value[known].sum())
    click = job.measured["labels"]["click"]
    same = ("auc", "gauc_user", "gauc_request", "ndcg@10")
    assert {name: click[name] for name in same} == {name: job.measured["clicks"][name] for name in same}


def test_the_score_is_the_expected_worth_and_what_the_final_ranking_is_measured_by(job: Exported) -> None:
    score = column(job.predictions, "score")
    expected = column(job.predictions, "click_probability") + 20 * column(job.predictions, "order_probability")
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    click, request = column(job.predictions, "click"), job.predictions["request_id"].to_numpy()
    assert job.measured["clicks"]["ndcg@3"] == pytest.approx(metrics.ndcg(score, click, request, 3))
    value = job.measured["value"]
    assert value["worth"] == WORTH and value["captured@3"]["best"] >= value["captured@3"]["score"] > 0


def test_what_no_label_tells_of_is_null(job: Exported, tmp_path: Path) -> None:
    paths = ["--predictions", str(tmp_path / "predictions.parquet"), "--metrics", str(tmp_path / "metrics.json")]
    evaluate(["--run", str(job.run), "--data", str(job.data), "--split", "judgments", *paths])
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert {name: found["labels"]["order"][name] for name in ("positives", "auc", "ndcg@3", "calibration")} == {
        "positives": 0,
        "auc": None,
        "ndcg@3": None,
        "calibration": None,
    }
    assert found["value"]["captured@3"] == dict.fromkeys(("score", "click_probability", "best"))
    assert "\norder " in format_metrics(found)


def test_validation_and_the_log_of_training_have_each_label(job: Exported) -> None:
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("bce_order" in line and "bce_cart" in line for line in lines)
    (found, *_) = (line["validation"] for line in lines if "validation" in line)
    measures = ("ne", "auc", "gauc_request", "calibration")
    assert list(found) == [*measures, *(f"{name}_{label}" for label in LABELS for name in measures)]
    assert 0 < found["auc_order"] < 1


def test_table_and_report_show_the_labels(job: Exported, tmp_path: Path) -> None:
    text = format_metrics(job.measured)
    assert "\nlabel " in text and "\norder " in text and "by 1 click + 20 order" in text
    write_report(tmp_path / "report.html", {"small": job.run})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Labels</h2>" in page and "small, order" in page and "3 places, 1 click + 20 order" in page
    assert "| order |" in (job.folder / "README.md").read_text(encoding="utf-8")


def test_the_exported_ranker_says_of_labels_what_the_trainer_does(job: Exported, ranker: Ranker, tmp_path: Path) -> None:
    names = ["click_probability", "cart_probability", "order_probability", "score"]
    table = ranker.score(job.samples)
    assert score_files(job.folder, job.data / "test", tmp_path / "scores.parquet") == len(table)
    for found in (table, pq.read_table(tmp_path / "scores.parquet")):
        for name in names:
            np.testing.assert_allclose(column(found, name), column(job.predictions, name), atol=1e-5)
    assert ranker.score(job.samples.slice(0, 0)).column_names == table.column_names
    alone = [ranker.score(request) for request in job.requests[:5]]  # batches of one
    together = ranker.score(job.requests)
    for one, of_all in zip(alone, together, strict=False):
        np.testing.assert_allclose(one.score, of_all.score, atol=1e-5)


def test_a_request_may_say_what_labels_are_worth_to_it(job: Exported, ranker: Ranker) -> None:
    reordered = 0
    for request in job.requests:
        as_trained, by_order = ranker.score(request), ranker.score({**request, "score": {"order": 1}}, explain=True)
        np.testing.assert_array_equal(by_order.score, by_order.label_probabilities["order"])
        np.testing.assert_array_equal(by_order.ranking(), np.argsort(-by_order.score, kind="stable"))
        assert as_trained.worth == WORTH and by_order.explanation is not None
        assert [row["score"] for row in by_order.explanation["candidates"]] == by_order.score[by_order.ranking()].tolist()
        by_click = ranker.score({**request, "score": {"click": 1}})
        np.testing.assert_array_equal(by_click.score, as_trained.click_probability)
        reordered += by_click.ranking().tolist() != by_order.ranking().tolist()
    assert reordered


BAD: dict[str, tuple[Any, str]] = {
    "unknown": ({"oder": 1}, r"score\.oder: got an unknown label; expected one of click, cart, order \(did you mean 'order'\?\)"),
    "a list": ([1], r"score: got \[1\] \(list\); expected an object of numbers by label"),
    "nothing": ({}, r"score: got .* expected an object of numbers by label"),
    "text": ({"order": "2"}, r"score\.order: got '2' \(str\); expected a number"),
    "a flag": ({"order": True}, r"score\.order: got True \(bool\); expected a number"),
    "no number": ({"order": float("nan")}, r"score\.order: got nan"),
    "infinite": ({"order": 10**400}, r"score\.order: got 1000.* expected a number from -1e\+09 to 1e\+09"),
    "no column": (
        {"order": {"times": "prices"}},
        r"score\.order\.times: got 'prices' .*; expected a number of the candidates, of price, bm25",
    ),
    "a time": ({"order": {"times": "listed"}}, r"score\.order\.times: got 'listed'"),
    "more": ({"order": {"times": "price", "by": 2}}, r"score\.order: got .*; expected a number, or an object with `times` alone"),
    "no text": ({3: 1}, r"score\.3: got an unknown label"),
}


@pytest.mark.parametrize(("score", "message"), BAD.values(), ids=BAD)
def test_a_wrong_score_is_named(job: Exported, ranker: Ranker, score: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ranker.score({**job.requests[0], "score": score})


def test_the_server_ranks_by_the_score_and_answers_with_each_label(job: Exported, client: TestClient) -> None:
    request = max(job.requests, key=lambda request: len(request["candidates"]))
    for worth in (WORTH, {"order": 1.0}, {"click": -1.0}):
        sent = request if worth is WORTH else {**request, "score": worth}
        answer = client.post("/v1/rank?explain=true", json=sent).json()
        rows = answer["candidates"]
        assert all({"click_probability", "cart_probability", "order_probability", "score"} <= row.keys() for row in rows)
        expected = [sum(value * row[f"{label}_probability"] for label, value in worth.items()) for row in rows]
        np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-6)
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
        assert answer["explanation"]["score"] == worth
        assert [row["item_id"] for row in answer["explanation"]["candidates"]] == [row["item_id"] for row in rows]
    refused = client.post("/v1/rank", json={**request, "score": {"orders": 1}})
    assert refused.status_code == 422 and refused.json()["error"]["field"] == "score.orders"
    schema = json.loads((job.folder / "schema.json").read_text(encoding="utf-8"))
    assert list(schema["properties"]["score"]["properties"]) == ["click", *LABELS]


def test_the_page_shows_each_label_and_what_it_adds_to_the_score(client: TestClient) -> None:
    about = client.get("/demo").json()
    assert about["score"] == "1 click + 20 order"
    for row in client.post("/demo", json={"query": about["queries"][0], "user": "0"}).json()["plain"]:
        assert [label["name"] for label in row["labels"]] == ["click", *LABELS]
        assert sum(label["worth"] * label["probability"] for label in row["labels"]) == pytest.approx(row["score"], abs=1e-5)


def test_an_explanation_says_what_the_score_is_made_of(job: Exported) -> None:
    found = explain(job.run, job.data, int(job.samples["request_id"][0].as_py()))
    for row in found["candidates"]:
        assert row["score_parts"] == {"click": row["click_probability"], "order": 20 * row["order_probability"]}
        assert sum(row["score_parts"].values()) == pytest.approx(row["score"], rel=1e-5)
    text = format_explanation(found)
    assert "score of order" in text and "score: what ranks: 1 click + 20 order" in text
