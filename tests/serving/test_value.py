"""A ranking by expected value, in which a label is worth a number of the candidate: from training to a served ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from served_jobs import Exported, column, exported_job
from small_run import LABELS, small_config

from prectr_torchrec import Ranker
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.evaluation.explain import explain, format_explanation
from prectr_torchrec.evaluation.measures_text import format_metrics
from prectr_torchrec.serving.fields import RequestError
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.serving.server import RankingServer, ServerSettings

SCORE = {"click": 1.0, "order": {"times": "price"}}
SECTIONS: dict[str, Any] = {
    "model": {"parts": {"numbers": None, "personal": None, "taste": None}},  # the ranker itself reads no number
    "train": {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}]},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    config = small_config(**SECTIONS, data={"labels": LABELS}, score=SCORE)
    return exported_job(tmp_path_factory.mktemp("value"), config, requests=40)


@pytest.fixture(scope="module")
def ranker(job: Exported) -> Ranker:
    return Ranker.load(job.folder)


def prices(samples: pa.Table) -> np.ndarray:
    return samples["candidate_price"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)


def test_predictions_have_each_candidates_worth_and_the_score_of_it(job: Exported) -> None:
    price = prices(job.samples)
    assert 0 < np.isnan(price).sum() < len(price)
    np.testing.assert_array_equal(column(job.predictions, "order_worth"), price)
    expected = column(job.predictions, "click_probability") + np.nan_to_num(price) * column(job.predictions, "order_probability")
    np.testing.assert_allclose(column(job.predictions, "score"), expected, rtol=1e-6)


def test_the_value_captured_is_that_of_the_prices(job: Exported) -> None:
    measured = job.measured
    found, request = measured["value"], job.predictions["request_id"].to_numpy()
    assert found["worth"] == SCORE and "by 1 click + price x order" in format_metrics(measured)
    value = column(job.predictions, "click") + np.nan_to_num(prices(job.samples)) * column(job.predictions, "order")
    shares = []
    for one in np.unique(request):
        rows = np.flatnonzero((request == one) & ~np.isnan(value))
        order = rows[np.argsort(-column(job.predictions, "score")[rows], kind="stable")]
        shares += [(value[order[:3]].sum(), value[order].sum())]
    captured, whole = np.array(shares).sum(0)
    assert found["captured@3"]["score"] == pytest.approx(captured / whole, rel=0.05)


def test_the_exported_ranker_scores_as_the_trainer_does(job: Exported, ranker: Ranker, tmp_path: Path) -> None:
    score_files(job.folder, job.data / "test", tmp_path / "scores.parquet")
    for found in (ranker.score(job.samples), pq.read_table(tmp_path / "scores.parquet")):
        np.testing.assert_allclose(column(found, "score"), column(job.predictions, "score"), atol=1e-5)
    alone = np.concatenate([scores.score for scores in ranker.score(job.requests)])
    np.testing.assert_allclose(alone, column(job.predictions, "score"), atol=1e-5)


def test_a_request_may_multiply_by_another_number(job: Exported, ranker: Ranker) -> None:
    for request in job.requests[:8]:
        scores = ranker.score({**request, "score": {"cart": {"times": "bm25"}}}, explain=True)
        bm25 = np.array([row.get("bm25") for row in request["candidates"]], dtype=np.float64)
        expected = np.nan_to_num(bm25) * scores.label_probabilities["cart"]
        np.testing.assert_allclose(scores.score, expected, rtol=1e-6)
        assert scores.explanation is not None and scores.explanation["score"] == {"cart": {"times": "bm25"}}
        ranked = [row["score"] for row in scores.explanation["candidates"]]
        assert ranked == sorted(ranked, reverse=True) == scores.score[scores.ranking()].tolist()


def test_a_candidate_without_its_number_is_worth_nothing_and_a_request_without_any_is_refused(
    job: Exported, ranker: Ranker
) -> None:
    request = max(job.requests, key=lambda request: len(request["candidates"]))
    first, *others = request["candidates"]
    scores = ranker.score({**request, "candidates": [{**first, "price": None}, *others]})
    assert scores.score[0] == scores.click_probability[0]
    without = [{key: value for key, value in row.items() if key != "price"} for row in request["candidates"]]
    expected = r"candidates\.price: got no candidate with it; expected the number that the score multiplies order by"
    for candidates in (without, {"item_id": [row["item_id"] for row in without]}):
        with pytest.raises(RequestError, match=expected):
            ranker.score({**request, "candidates": candidates})
    assert ranker.score({**request, "candidates": without, "score": {"click": 1}}).score.all()
    with pytest.raises(RequestError, match="candidate_price: got no such column; expected the number that the score"):
        ranker.score(job.samples.drop_columns(["candidate_price"]))


def test_page_and_server_say_what_each_label_adds(job: Exported) -> None:
    with TestClient(RankingServer(job.folder, ServerSettings(deadline=60), demo=job.data / "test").app) as client:
        about = client.get("/demo").json()
        assert about["score"] == "1 click + price x order"
        for row in client.post("/demo", json={"query": about["queries"][0], "user": "0"}).json()["plain"]:
            assert sum(label["worth"] * label["probability"] for label in row["labels"]) == pytest.approx(row["score"], abs=1e-5)
        request = job.requests[0]
        answer = client.post("/v1/rank", json={**request, "score": {"order": {"times": "price"}}}).json()
        assert [row["score"] for row in answer["candidates"]] == sorted((r["score"] for r in answer["candidates"]), reverse=True)
        schema = json.loads((job.folder / "schema.json").read_text(encoding="utf-8"))["properties"]["score"]
        assert schema["properties"]["order"]["anyOf"][1]["properties"]["times"]["enum"] == ["price", "bm25"]


def test_an_explanation_says_what_the_score_is_made_of(job: Exported) -> None:
    found = explain(job.run, job.data, int(job.samples["request_id"][0].as_py()))
    for row in found["candidates"]:
        assert row["score_parts"]["order"] == (row["numbers"]["price"] or 0) * row["order_probability"]
    assert "score: what ranks: 1 click + price x order" in format_explanation(found)


BAD: dict[str, tuple[Any, str]] = {
    "no column": ({"times": "prise"}, r"score\.order\.times: 'prise' is no number of data\.columns.*did you mean 'price'"),
    "an id": ({"times": "engine"}, r"score\.order\.times: 'engine' is no number"),
    "something else": ({"time": "price"}, r"score\.order: .*give a finite number, or \{times: <a number of the candidate>\}"),
    "text": ("dear", r"score\.order: .*give a finite number"),
}


@pytest.mark.parametrize(("worth", "message"), BAD.values(), ids=BAD)
def test_a_wrong_worth_is_named(worth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(data={"labels": LABELS}, score={"order": worth})


def test_the_click_alone_may_be_worth_a_number(job: Exported) -> None:
    config = small_config(**SECTIONS, score={"click": {"times": "price"}})
    assert "price" in config.reads().candidate
    again = validate_config(config.model_dump(mode="json"), "again")
    assert again.score == config.score
