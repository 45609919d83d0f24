"""How far a command is: on a terminal, in a file, and where nobody wants to see it."""

from __future__ import annotations

import io
import re
import sys

import pytest
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app
from prectr_torchrec.system import progress
from prectr_torchrec.system.job_environment import QUIET
from prectr_torchrec.system.progress import Now, Progress, counted, quiet


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, total: int | None = 4) -> str:
    """What is shown of four steps that each take as long as is needed for progress."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with Progress("scoring", total=total, unit="rows") as shown:
        for _ in range(4):
            shown.update()
            shown.refresh()
    return stream.getvalue()


def test_a_file_gets_plain_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = work(monkeypatch, io.StringIO()).splitlines()
    assert re.fullmatch(r"scoring: 4 of 4 rows, .* rows/s, 00:00 left", lines[-1])
    assert not any("\r" in line for line in lines)


def test_without_a_total_there_is_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = work(monkeypatch, io.StringIO(), total=None).splitlines()
    assert re.fullmatch(r"scoring: 4\.00 rows, .* rows/s", lines[-1])


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = work(monkeypatch, Terminal())
    assert "\r" in shown and "100%" in shown and "scoring" in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_another_description_is_shown_with_the_next_progress(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("preparing", total=2) as shown:
        for step in ("sorting", "writing"):
            shown.set_description(step)
            shown.update()
        assert not stream.getvalue().strip()
        shown.refresh()
    assert "writing: " in stream.getvalue() and "writing: :" not in stream.getvalue()


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QUIET, "1")
    assert work(monkeypatch, Terminal()) == ""


def test_what_is_done_at_once_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(counted([1, 2], "exporting", "tables")) == [1, 2]
        assert not stream.getvalue().strip()


def test_plain_lines_come_at_long_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Now()
    assert [now.due() for _ in range(3)] == [True, False, False]
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert now.due()


def test_the_option_is_of_one_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUIET, raising=False)
    assert CliRunner().invoke(app, ["--quiet", "config", "--config", "demo"]).exit_code == 0
    assert not quiet()


def test_what_is_slow_has_seconds_for_each() -> None:
    assert "6.40s/epochs" in Progress.format_meter(5, 32, 32.0, unit=" epochs", bar_format="{rate_fmt}")


def test_one_that_a_signal_interrupts_before_it_is_made_closes_in_silence() -> None:
    Progress.__new__(Progress).close()
