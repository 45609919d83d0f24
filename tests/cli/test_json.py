"""`--json FILE`: what a command prints, for a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_shop import write_export
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app


def written(path: Path, *words: str, code: int = 0) -> tuple[Any, str]:
    """What stands in the file, and what was printed."""
    done = CliRunner().invoke(app, [*words, "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(path.read_text(encoding="utf-8")), done.output


def test_a_plan_that_fits(tmp_path: Path) -> None:
    found, printed = written(tmp_path / "plan.json", "plan", "--config", "billion_ids", "--gpus", "64", "--ddr", "2TB")
    assert found["fits"]
    assert found["tables"]["item"]["rows"] == 10_000_000_000
    assert f"{found['tables']['item']['bytes'] / 1e12:.2f} TB" in printed
    assert [rank["rank"] for rank in found["ranks"]] == list(range(64))
    assert f"rank {found['tightest']['rank']} with {found['tightest']['share']:.0%}" in printed


def test_a_plan_that_does_not_fit_with_what_was_tried(tmp_path: Path) -> None:
    words = ("plan", "--config", "billion_ids", "--gpus", "8", "--ddr", "2TB")
    found, printed = written(tmp_path / "plan.json", *words, code=1)
    assert not found["fits"]
    assert {change["fits"] for change in found["changes"]} == {True, False}
    assert all(change["what"] in printed for change in found["changes"])


def test_the_doctor(tmp_path: Path) -> None:
    found, printed = written(tmp_path / "doctor.json", "doctor")
    assert found["problems"] == []
    assert all(value in printed for value in found["found"].values())
    assert found["found"]["fbgemm library"] == "loads"


def test_pairs(tmp_path: Path) -> None:
    write_export(tmp_path / "shop", 40)
    config = tmp_path / "shop.yaml"
    runner = CliRunner()
    assert runner.invoke(app, ["init", str(tmp_path / "shop"), "--out", str(config)]).exit_code == 0
    words = ("pairs", "--config", str(config), "--raw", str(tmp_path / "shop"), "--out", str(tmp_path / "pairs.parquet"))
    found, printed = written(tmp_path / "pairs.json", *words)
    assert f"{found['rows']:,} pairs" in printed
    assert sum(found["by_split"].values()) == found["rows"]
