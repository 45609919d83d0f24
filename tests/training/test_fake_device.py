"""Every shipped configuration's training step on a fake GPU: all tensors on it, and where the host waits for it."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
from fake_device import DEVICE, MISTAKES, WAITS, Step, attempt, fake_step, register, seen_of, write_data
from pinned_runs import shipped, shrunk

from prectr_torchrec.config.run import RunConfig

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), register) as pool:
        yield pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("fake_device"))


@pytest.fixture(scope="module")
def steps(process: ProcessPoolExecutor, data: Path) -> dict[str, Future[Step]]:
    """Of each shipped configuration."""
    return {name: process.submit(attempt, fake_step, shrunk(name, data), data) for name in shipped()}


def v2(data: Path, other: str) -> RunConfig:
    """V2 with what no shipped configuration has."""
    config = shrunk("prectr_v2", data)
    if other == "losses":
        config.losses.debias.negatives = "noise"
        for loss in (config.losses.listwise, config.losses.jrc, config.losses.load_balance):
            loss.weight = 0.1
    elif other == "interaction":
        config.text.interaction = "late"
    else:
        config.model.text = False
    return config


@pytest.mark.parametrize("name", shipped())
def test_forward_losses_and_backward_stay_on_the_device(steps: dict[str, Future[Step]], name: str) -> None:
    step = steps[name].result()
    assert step.devices == {DEVICE} and step.without_gradient == 0


@pytest.mark.parametrize("other", ["losses", "interaction", "no text"])
def test_other_settings_add_no_wait(process: ProcessPoolExecutor, steps: dict[str, Future[Step]], data: Path, other: str) -> None:
    step = process.submit(attempt, fake_step, v2(data, other), data).result()
    assert step.devices == {DEVICE} and step.without_gradient == 0
    assert step.waits.items() <= steps["prectr_v2"].result().waits.items()


def test_the_host_waits_where_the_documents_say(steps: dict[str, Future[Step]]) -> None:
    documented = set(re.findall(r"^\| `(\S+\.py:\S+)` \|", DOCUMENTED, re.MULTILINE))
    assert {place for step in steps.values() for place in step.result().waits} == documented
    assert len([place for place in documented if not place.startswith("modules/text/")]) < 5


@pytest.mark.parametrize("case", WAITS)
def test_a_wait_is_counted(process: ProcessPoolExecutor, case: str) -> None:
    assert process.submit(attempt, seen_of, case).result() == 1


@pytest.mark.parametrize("case", MISTAKES)
def test_a_tensor_on_another_device_or_of_unknown_shape_raises(process: ProcessPoolExecutor, case: str) -> None:
    error = "at least two devices" if case == "another device" else "DynamicOutputShapeException"
    with pytest.raises(AssertionError, match=error):
        process.submit(attempt, seen_of, case).result()
