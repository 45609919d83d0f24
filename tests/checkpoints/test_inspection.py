import json
from pathlib import Path

import pytest
from checkpoints.resharding_worker import layout_config
from ranks import run_ranks
from small_run import write_small_data
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks: managed tables with element-wise Adagrad."""
    folder = tmp_path_factory.mktemp("inspection")
    data = write_small_data(folder / "data", layout_config("managed", "adagrad"), requests=32)
    run_ranks(2, "checkpoints.resharding_worker:train", data=data, run=folder / "run")
    return folder / "run"


def inspect(run: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoint", "inspect", "--run", str(run), *options])
    return done.exit_code, done.output


def test_it_shows_what_is_kept_and_what_is_in_it(run: Path, tmp_path: Path) -> None:
    code, output = inspect(run, "--parameters", "--json", str(tmp_path / "about.json"))
    assert code == 0, output
    about = json.loads((tmp_path / "about.json").read_text(encoding="utf-8"))
    assert about["last"] == about["name"] == about["kept"][-1] and about["world_size"] == 2 and about["broken"] == []
    item = about["tables"]["item"]
    assert item == {
        "rows": 24,
        "dim": 8,
        "dtype": "float32",
        "bytes": 24 * 8 * 4,
        "ids": "managed",
        "sharding_type": "row_wise",
        "kernel": "fused",
        "ranks": [0, 1],
        "optimizer": "adagrad",
        "state_shape": [24, 8],
        "state_bytes": 24 * 8 * 4,
    }
    assert about["parameters"]["relevance.tower.head.bias"] == {"shape": [4], "dtype": "float32"}
    for shown in (
        "last, best, validation NE",
        "saved by 2 ranks at step",
        "files as they were written",
        "relevance.tower.head.bias",
    ):
        assert shown in output
    assert "tables.item" in output and "24 x 8" in output


def test_a_broken_file_is_named(run: Path) -> None:
    path = next((run / "checkpoints").glob("step-*/*.distcp"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    code, output = inspect(run)
    path.write_bytes(whole)
    assert code == 1 and f"broken: {path}: truncated or grown" in output


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["checkpoint", "inspect", "--run", str(tmp_path)])
    assert isinstance(done.exception, FileNotFoundError)
