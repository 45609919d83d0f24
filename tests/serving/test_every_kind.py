"""A ranker that reads every kind of column, with labels and sample weights: trainer, export and a request by hand agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_jobs import Exported, exported_job
from small_run import LABELS, OF_EVERY_KIND, small_config

from prectr_torchrec import Ranker
from prectr_torchrec.data.hashing import path_levels
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.serving.fields import RequestError
from prectr_torchrec.serving.score_files import score_files

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.01, "warmup_steps": 2}]}
PROBABILITIES = [f"{label}_probability" for label in ("click", *LABELS)]
OF_REQUESTS = ("user_age", "user_joined", "user_profile", "user_interests", "query_length", "query_intent", "query_kind", "hour")
OF_CANDIDATES = ("price", "listed", "tags", "tag_scores", "shelf", "image", "details", "bm25", "view", "badges", "engine")


class Job(NamedTuple):
    exported: Exported
    vectors: ItemVectors
    ranker: Ranker


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    config = small_config(train=STAGES, **OF_EVERY_KIND)
    exported = exported_job(tmp_path_factory.mktemp("every"), config, requests=60, vectors=True)
    return Job(exported, ItemVectors.of(config.data, exported.data / ITEM_VECTORS), Ranker.load(exported.folder))


def probabilities(ranker: Ranker, requests: list[dict[str, Any]]) -> np.ndarray:
    """(candidates, labels)"""
    found = ranker.score(requests)
    of_labels = [[of.click_probability, *(of.label_probabilities[name] for name in LABELS)] for of in found]
    return np.concatenate([np.stack(labels, axis=1) for labels in of_labels])


def of_trainer(job: Job) -> np.ndarray:
    return np.stack([job.exported.predictions[name].to_numpy() for name in PROBABILITIES], axis=1)


def test_export_and_trainer_agree_on_every_label(job: Job, tmp_path: Path) -> None:
    score_files(job.exported.folder, job.exported.data / "test", tmp_path / "scores.parquet")
    for found in (job.ranker.score(job.exported.samples), pq.read_table(tmp_path / "scores.parquet")):
        table = np.stack([found[name].to_numpy() for name in PROBABILITIES], axis=1)
        np.testing.assert_allclose(table, of_trainer(job), atol=1e-5)
        assert table.std(axis=0).min() > 1e-3


def test_a_request_by_hand_scores_as_its_sample_does(job: Job) -> None:
    requests = job.exported.requests
    np.testing.assert_allclose(probabilities(job.ranker, requests), of_trainer(job), atol=1e-5)
    for request in requests:  # what the ranker knows of its items may come with the request too
        for candidate in request["candidates"]:
            (image,) = job.vectors.rows("image", np.array([candidate["item_id"]]))
            candidate["image"] = None if np.isnan(image).any() else image.tolist()
    np.testing.assert_allclose(probabilities(job.ranker, requests), of_trainer(job), atol=1e-5)


def test_a_path_comes_as_text_or_as_the_ids_of_its_levels(job: Job) -> None:
    request = job.exported.requests[0]
    path = "Home > Kitchen"
    ids = job.ranker.schema.from_plain([request | {"candidates": [{"item_id": 1, "shelf": path}]}])["candidate_shelf"]
    assert len(ids.to_pylist()[0][0]) == len(path_levels(path, ">")) == 2
    written, known = ([{**c, "shelf": shelf} for c in request["candidates"]] for shelf in (path, ids.to_pylist()[0][0]))
    scored = [probabilities(job.ranker, [request | {"candidates": candidates}]) for candidates in (written, known)]
    np.testing.assert_array_equal(*scored)
    assert not np.array_equal(scored[0], probabilities(job.ranker, [request]))


def test_each_declared_column_is_optional_and_counts(job: Job) -> None:
    request = max(job.exported.requests, key=lambda request: len(request["candidates"]))
    whole = probabilities(job.ranker, [request])
    moved = set()
    for name in OF_REQUESTS:
        without = {key: value for key, value in request.items() if key != name}
        moved |= {name} if not np.array_equal(probabilities(job.ranker, [without]), whole) else set()
    for name in OF_CANDIDATES:
        dropped = {name, "tag_scores"} if name == "tags" else {name}  # which are of these
        rows = [{key: value for key, value in row.items() if key not in dropped} for row in request["candidates"]]
        moved |= {name} if not np.array_equal(probabilities(job.ranker, [request | {"candidates": rows}]), whole) else set()
    assert moved >= {"hour", "price", "listed", "tags", "tag_scores", "shelf", "details", "bm25", "view", "badges"}
    bare = {"query": request["query"], "candidates": [{"item_id": row["item_id"]} for row in request["candidates"]]}
    assert np.isfinite(probabilities(job.ranker, [bare])).all()


WRONG: dict[str, tuple[Any, str]] = {
    "price": ("12", r"candidates\[1\]\.price: got '12' \(str\); expected a number"),
    "image": ([1.0] * 5, r"candidates\[1\]\.image: got .*; expected null or 6 numbers"),
    "shelf": (7, r"candidates\[1\]\.shelf: got 7 \(int\); expected a text of at most 50 levels"),
    "tags": ([None], r"candidates\[1\]\.tags: got \[None\] \(list\); expected a list of at most 1,000"),
    "tag_scores": ([-1.0], r"candidates\[1\]\.tag_scores: got \[-1.0\] \(list\); expected a list, for each of 'tags'"),
    "view": ([1.0, 2.0], r"candidates\[1\]\.view: got .*; expected null or 3 numbers"),
    "listed": (-1, r"candidates\[1\]\.listed: got -1 \(int\); expected a number from 0"),
    "badges": ("new", r"candidates\[1\]\.badges: got 'new' \(str\); expected a list of at most 1,000"),
    "details": (7, r"candidates\[1\]\.details: got 7 \(int\); expected a text"),
    "sample_weight": (1.0, r"candidates\[1\]\.sample_weight: got an unknown field"),
}


@pytest.mark.parametrize(("name", "value", "message"), [(n, *wrong) for n, wrong in WRONG.items()], ids=WRONG)
def test_a_wrong_column_is_named(job: Job, name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match="^" + message):
        job.ranker.score({"query": "q", "candidates": [{"item_id": 1}, {"item_id": 2, name: value}]})
