"""The demo's rankers, which all read the same samples."""

from __future__ import annotations

import pytest

from prectr_torchrec.cli.demo import RUNS, lengths, shown
from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.schema import sample_settings

DATA = load_config(RUNS["prectr_v2"]).data


@pytest.mark.parametrize(("config", "settings"), [*((config, []) for config in RUNS.values()), ("mixed", lengths(DATA))])
def test_they_agree_on_the_samples(config: str, settings: list[str]) -> None:
    found = load_config(config, [setting.removeprefix("--set=") for setting in settings]).data
    assert sample_settings(found) == sample_settings(DATA)


def test_of_a_job_s_validations_the_last_is_shown_and_nothing_of_torchx() -> None:
    job = ["local_cwd://torchx/train-x\n", "step 2  validation  ne 0.9\n", "step 3  loss 0.5\n", "step 4  validation  ne 0.8\n"]
    assert list(shown(job)) == ["step 3  loss 0.5\n", "step 4  validation  ne 0.8\n"]
    assert list(shown(["better than the logged order by 0.1\n", "auc 0.8\n"], "better")) == [
        "better than the logged order by 0.1\n"
    ]
