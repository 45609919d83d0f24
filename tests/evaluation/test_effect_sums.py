"""Sums over past events as columns of samples, by a trained ranker of mixed effects, against the events one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import MIXED, small_config, write_small_data

from prectr_torchrec.config.data import Effect
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import load_manifest, read_manifest
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation import effect_sums as effects
from prectr_torchrec.evaluation.scoring import score
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer

D = {"user": 15, "query": 2}
OF: tuple[Effect, ...] = ("user", "query")


class Job(NamedTuple):
    config: RunConfig
    run: Path
    data: Path
    out: Path
    known: dict[str, dict[Effect, int]]


@pytest.fixture(scope="module", params=[0, 60], ids=["clicks at once", "late clicks"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("effects")
    stages = [{"split": "train", "epochs": 1, "warmup_steps": 2}]
    config = small_config(train={"stages": stages, "validation": False}, **MIXED)
    config.data.feedback_delay = request.param
    data = write_small_data(folder / "data", config, requests=60)
    with process_group("cpu") as process:
        Trainer(config, data, folder / "run", process).train()
    known = effects.write_effects(folder / "run", data, folder / "out", of=OF, checkpoint="last")
    return Job(config, folder / "run", data, folder / "out", known)


def samples(data: Path, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((data / split).glob("*.parquet"))])


class Event(NamedTuple):
    request: dict[str, Any]
    x: np.ndarray
    logit: float
    seen: float
    known: int | None


def events_of(job: Job) -> tuple[list[Event], np.ndarray]:
    """All shown candidates, and the prior variance of users."""
    past: list[Event] = []
    for split in effects.LABELLED:
        requests = {row["request_id"]: row for row in samples(job.data, split).to_pylist()}
        with process_group("cpu") as process:
            scored = score(job.run, job.data, split, "last", process)
            for rows in scored.rows:
                slow = rows["logit_of_means"].astype(np.float64) - rows["user_effect"] - rows["query_effect"]
                items = dict.fromkeys(zip(rows["request_id"].tolist(), rows["item_id"].tolist(), strict=True))
                assert len(items) == len(slow)
                shown = [(requests[request], requests[request]["candidate_item_id"].index(item)) for request, item in items]
                known = [click_known(request, place) for request, place in shown]
                x = rows["inputs_of_effects"].astype(np.float64)
                columns = zip([request for request, _ in shown], x, slow, rows["examination"], known, strict=True)
                past += [Event(*column) for column in columns]
            variance = scored.ranker.variance("user_effect").double().numpy()
    return past, variance


def added(S: np.ndarray, information: np.ndarray, event: Event, dim: int, b: np.ndarray) -> float:
    """Adds an event as one that was not clicked, in place; what a click adds by x."""
    x = event.x[:dim]
    attracted = 1 / (1 + np.exp(-(event.logit + b @ x)))
    e = event.seen * attracted
    w = (1 - attracted) / (1 - e)
    S += (-e * w + e * (1 - e) * w**2 * (b @ x)) * x
    information += e * (1 - e) * w**2 * np.outer(x, x)
    return float(w)


def test_every_request_has_the_sums_of_all_strictly_earlier_events(job: Job) -> None:
    past, variance = events_of(job)
    for split in effects.LABELLED:
        for request in samples(job.out, split).to_pylist()[::3]:
            for who, dim in D.items():
                S, information = np.zeros(dim), np.zeros((dim, dim))
                weights: dict[int, float] = {}
                earlier: dict[int, list[tuple[int, Event]]] = {}
                for n, event in enumerate(past):
                    mine = event.request["user_id"] == request["user_id"] != 0
                    wanted = mine if who == "user" else event.request["query_id"] == request["query_id"] != 0 and not mine
                    if wanted:
                        earlier.setdefault(event.request["timestamp"], []).append((n, event))
                moments = {*earlier, *(e.known for events in earlier.values() for _, e in events if e.known is not None)}
                for moment in sorted(moment for moment in moments if moment < request["timestamp"]):
                    b = np.linalg.solve(information + np.diag(1 / variance[:dim]), S) if who == "user" else np.zeros(dim)
                    for n, event in earlier.get(moment, []):
                        weights[n] = added(S, information, event, dim, b)
                    for events in earlier.values():
                        for n, event in events:
                            if event.known == moment:
                                S += weights[n] * event.x[:dim]
                expected = np.concatenate([S, information[np.triu_indices(dim)]])
                np.testing.assert_allclose(request[f"{who}_sums"], expected, atol=2e-5)


def click_known(request: dict[str, Any], place: int) -> int | None:
    if not request["candidate_click"][place]:
        return None
    return request.get("candidate_known_click", {place: request["timestamp"]})[place]


def test_who_has_no_past_has_zeros_and_is_not_counted(job: Job) -> None:
    for split in effects.LABELLED:
        table = samples(job.out, split)
        for who in OF:
            found = np.array(table[f"{who}_sums"].to_pylist())
            assert found.any(axis=1).sum() == job.known[split][who] < len(found)
    assert sum(known["user"] for known in job.known.values()) > 50


def test_nothing_else_of_the_samples_changes(job: Job) -> None:
    for split in effects.LABELLED:
        assert samples(job.out, split).drop_columns(["user_sums", "query_sums"]).equals(samples(job.data, split))
    with_sums = job.config.data.model_copy(update={"effects": D})
    assert read_manifest(job.out, with_sums)["effects"] == effects.ranker_digest(job.run, "last")
    assert load_manifest(job.out)["examination"] == load_manifest(job.data)["examination"]
    with pytest.raises(ValueError, match=r"prepared with data\.effects"):
        read_manifest(job.out, job.config.data)


def test_what_cannot_be_done_is_said(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match="is there already; remove it or choose another folder"):
        effects.write_effects(job.run, job.data, job.out)
    with pytest.raises(ValueError, match=r"prepared with data\.effects"):
        effects.write_effects(job.run, job.out, tmp_path / "twice")
    monkeypatch.setattr(effects, "load_run", lambda run: small_config())
    with pytest.raises(ConfigError, match=r"needs a ranker of kind 'mixed' with features.user_effect; this is one of 'prectr'"):
        effects.write_effects(tmp_path, tmp_path, tmp_path / "out")
