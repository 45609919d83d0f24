"""The demo's rankers, which all read the same samples."""

from __future__ import annotations

import pytest

from prectr_torchrec.cli.demo import RUNS, lengths
from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.schema import sample_settings

DATA = load_config(RUNS["prectr_v2"]).data


@pytest.mark.parametrize(("config", "settings"), [*((config, []) for config in RUNS.values()), ("mixed", lengths(DATA))])
def test_they_agree_on_the_samples(config: str, settings: list[str]) -> None:
    found = load_config(config, [setting.removeprefix("--set=") for setting in settings]).data
    assert sample_settings(found) == sample_settings(DATA)
