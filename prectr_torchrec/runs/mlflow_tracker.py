"""MLflow as a tracker; its client reads `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and credentials from the environment."""

from __future__ import annotations

import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prectr_torchrec.system.job_environment import environment
from prectr_torchrec.system.plain_files import flatten

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # rank 0 waits meanwhile, and the other ranks for it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of MLflow's own settings, where the environment has none."""
EXPERIMENT = "prectr"
_MOST_PARAMETERS, _MOST_CHARACTERS = 100, 500
"""Of one call, and of a parameter's value: what every server takes."""


class MLflow:
    """A run of an MLflow experiment, which is made where it is missing.

    Args:
        run: run directory, whose name it gets.
        settings: logged as parameters, `key.sub`.
        run_id: of the run to resume; None: a new one.
    """

    run_id: str

    def __init__(self, run: Path, settings: dict[str, Any], run_id: str | None) -> None:
        self.resumed = run_id is not None
        with _defaults():
            from mlflow.entities import Param
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient()
            if run_id is not None:
                self.client.update_run(run_id, status="RUNNING")
                self.run_id = run_id
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            experiment = self.client.get_experiment_by_name(name)
            number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            self.run_id = self.client.create_run(number, run_name=run.resolve().name).info.run_id
            parameters = [Param(_name(key), str(value)[:_MOST_CHARACTERS]) for key, value in flatten(settings).items()]
            for start in range(0, len(parameters), _MOST_PARAMETERS):
                self.client.log_batch(self.run_id, params=parameters[start : start + _MOST_PARAMETERS])

    def write(self, scalars: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with _defaults():
            self.client.log_batch(self.run_id, metrics=[Metric(_name(name), value, now, step) for name, value in scalars.items()])

    def close(self, *, finished: bool) -> None:
        with _defaults():
            self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")


def _name(name: str) -> str:
    """With the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _defaults() -> AbstractContextManager[None]:
    return environment({name: value for name, value in DEFAULTS.items() if name not in os.environ})
