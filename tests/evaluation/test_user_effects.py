"""Users as of each request, by a trained ranker of mixed effects, against the sums of all events one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import MIXED, small_config, write_small_data

from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation import user_effects as effects
from prectr_torchrec.evaluation.scoring import score
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer

D = 10


class Job(NamedTuple):
    run: Path
    data: Path
    out: Path
    known: dict[str, int]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("effects")
    stages = [{"split": "train", "epochs": 1, "warmup_steps": 2}]
    config = small_config(train={"stages": stages, "validation": False}, **MIXED)
    data = write_small_data(folder / "data", config, requests=60)
    with process_group("cpu") as process:
        Trainer(config, data, folder / "run", process).train()
    known = effects.write_effects(folder / "run", data, folder / "out", "last")
    return Job(folder / "run", data, folder / "out", known)


def samples(data: Path, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((data / split).glob("*.parquet"))])


def test_every_request_has_one_newton_step_from_all_strictly_earlier_events(job: Job) -> None:
    past: list[tuple[int, int, Any, float, float]] = []
    variance = None
    for split in effects.LABELLED:
        times = dict(zip(*(samples(job.data, split)[name].to_pylist() for name in ("request_id", "timestamp")), strict=True))
        with process_group("cpu") as process:
            scored = score(job.run, job.data, split, "last", process)
            variance = (2 * dict(scored.ranker.named_parameters())["effects.user_effect.log_sd"].detach()).exp().double().numpy()
            for rows in scored.rows:
                slow = rows["logged_logit"] - rows["user_effect"]
                e = 1 / (1 + np.exp(-slow.astype(np.float64)))
                values = zip(rows["user_id"], rows["request_id"], rows["inputs_of_effects"], rows["click"], e, strict=True)
                past += [(int(user), times[int(request)], x, y, p) for user, request, x, y, p in values]
    assert variance is not None and len(variance) == D
    for split in effects.LABELLED:
        found = pq.read_table(job.out / f"{split}.parquet").to_pylist()
        requests = {row["request_id"]: row for row in samples(job.data, split).to_pylist()}
        assert {row["request_id"] for row in found} == set(requests)
        for row in found[::3]:
            request = requests[row["request_id"]]
            S, precision = np.zeros(D), np.diag(1 / variance)
            for user, time, x, y, p in past:
                if user and user == request["user_id"] and time < request["timestamp"]:
                    S += (y - p) * x
                    precision += p * (1 - p) * np.outer(x, x)
            np.testing.assert_allclose(row["mean"], np.linalg.solve(precision, S), atol=1e-5)
            np.testing.assert_allclose(row["sd"], np.sqrt(np.diag(np.linalg.inv(precision))), atol=1e-5)


def test_who_has_no_past_is_at_the_prior_and_is_not_counted(job: Job) -> None:
    for split in effects.LABELLED:
        means = np.array(pq.read_table(job.out / f"{split}.parquet")["mean"].to_pylist())
        assert means.any(axis=1).sum() == job.known[split] < len(means)
    assert sum(job.known.values()) > 50


def test_another_kind_of_ranker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "load_run", lambda run: small_config())
    with pytest.raises(ConfigError, match=r"needs a ranker of kind 'mixed' with features.user_effect; this is one of 'prectr'"):
        effects.write_effects(tmp_path, tmp_path, tmp_path / "out")
