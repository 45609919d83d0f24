"""A ranker that reads vectors of items, from training to requests that bring them and requests that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_jobs import Exported, exported_job
from small_run import COLUMNS, small_config

from prectr_torchrec import Ranker
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.evaluation.explain import explain
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.system.errors import ConfigError

SECTIONS: dict[str, Any] = {
    "data": {"columns": {**COLUMNS, "items": {**COLUMNS["items"], "image": {"vector": {"width": 6, "dtype": "float16"}}}}},
    "model": {"parts": {"personal": None, "taste": None}},
    "train": {"stages": [{"split": "train", "epochs": 1, "lr": 0.01, "warmup_steps": 2}]},
}


class Job(NamedTuple):
    exported: Exported
    vectors: ItemVectors
    score: np.ndarray
    """Of the trainer."""

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.exported.requests

    def with_images(self) -> list[dict[str, Any]]:
        """The requests with the vectors that samples do not have."""
        found = self.requests
        for request in found:
            for row in request["candidates"]:
                (image,) = self.vectors.rows("image", np.array([row["item_id"]]))
                row["image"] = None if np.isnan(image).any() else image.tolist()
        return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    config = small_config(**SECTIONS)
    exported = exported_job(tmp_path_factory.mktemp("vectors"), config, requests=40, vectors=True)
    vectors = ItemVectors.of(config.data, exported.data / ITEM_VECTORS)
    return Job(exported, vectors, exported.predictions["click_probability"].to_numpy())


def scores(ranker: Ranker, requests: list[dict[str, Any]]) -> np.ndarray:
    return np.concatenate([found.click_probability for found in ranker.score(requests)])


def test_an_exported_ranker_knows_the_vectors_of_its_items(job: Job, tmp_path: Path) -> None:
    ranker = Ranker.load(job.exported.folder)
    np.testing.assert_allclose(ranker.score(job.exported.samples)["click_probability"].to_numpy(), job.score, atol=1e-5)
    np.testing.assert_allclose(scores(ranker, job.requests), job.score, atol=1e-5)
    np.testing.assert_allclose(scores(ranker, job.with_images()), job.score, atol=1e-5)
    np.testing.assert_allclose(scores(ranker.aside, job.requests), job.score, atol=1e-5)
    assert score_files(job.exported.folder, job.exported.data / "test", tmp_path / "scores.parquet") == len(job.score)
    np.testing.assert_allclose(pq.read_table(tmp_path / "scores.parquet")["click_probability"].to_numpy(), job.score, atol=1e-5)


def test_a_request_s_own_vector_wins_and_a_new_item_may_bring_one(job: Job) -> None:
    ranker = Ranker.load(job.exported.folder)
    request = next(request for request in job.with_images() if request["candidates"][0]["image"])
    first, *others = request["candidates"]

    def scored(**values: Any) -> float:
        return float(ranker.score({**request, "candidates": [{**first, **values}, *others]}).click_probability[0])

    known = scored(image=None)
    assert known == scored() and scored(image=[9.0] * 6) != known
    assert scored(item_id=10**15, image=None) != scored(item_id=10**15, image=first["image"])


def test_without_vectors_requests_bring_them(job: Job, tmp_path: Path) -> None:
    expected = r"reads vectors of items \(image\): name the prepared folder that has them \(--vectors DIR\), or let requests"
    with pytest.raises(ConfigError, match=expected):
        export(job.exported.run, tmp_path / "unsaid")
    export(job.exported.run, tmp_path / "bare", without_vectors=True)
    ranker = Ranker.load(tmp_path / "bare")
    np.testing.assert_allclose(scores(ranker, job.with_images()), job.score, atol=1e-5)
    assert np.abs(scores(ranker, job.requests) - job.score).max() > 1e-5
    assert score_files(tmp_path / "bare", job.exported.data / "test", tmp_path / "scores.parquet") == len(job.score)
    found = pq.read_table(tmp_path / "scores.parquet")["click_probability"].to_numpy()  # samples have theirs beside them
    np.testing.assert_allclose(found, job.score, atol=1e-5)


def test_a_damaged_file_is_named(job: Job, tmp_path: Path) -> None:
    export(job.exported.run, tmp_path / "exported", vectors=job.exported.data)
    path = tmp_path / "exported" / ITEM_VECTORS / "image.float16x6"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"item_vectors/image\.float16x6"):
        Ranker.load(tmp_path / "exported")


def test_a_request_is_explained_with_its_items_vectors(job: Job) -> None:
    request = int(job.exported.samples["request_id"][0].as_py())
    found = {
        row["item_id"]: row["click_probability"] for row in explain(job.exported.run, job.exported.data, request)["candidates"]
    }
    items = job.exported.samples["candidate_item_id"][0].as_py()
    np.testing.assert_allclose([found[item] for item in items], job.score[: len(items)], atol=1e-5)
