"""A small trained run, evaluated and exported once for all tests of serving."""

from __future__ import annotations

import pytest
from served_jobs import Exported, exported_job
from small_run import small_config

from prectr_torchrec import Ranker

STAGES = {"stages": [{"split": "train", "epochs": 2, "lr": 0.003, "warmup_steps": 2}]}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_job(tmp_path_factory.mktemp("serving"), small_config(train=STAGES), requests=80)


@pytest.fixture(scope="session")
def ranker(exported: Exported) -> Ranker:
    return Ranker.load(exported.folder)
