"""Mistakes that are told before torch is imported, and settings that are told to be of no use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config, write_small_manifest

from prectr_torchrec.cli.preflight import check_run, check_training
from prectr_torchrec.config.files import dump_config, load_config, written_settings
from prectr_torchrec.config.unused import unused_settings
from prectr_torchrec.data.schema import MANIFEST

COMMANDS = (
    "train --config nothing --data d --run r",
    "train --config demo --data d --run r",
    "train --config demo --set features.user_name.table=user --data d --run r",
    "prepare --config demo --set data.history_length=-1 --raw r --out o",
    "distill --config demo --pairs p --out o",
    "teach --teacher t --pairs p --out o",
    "plan --config demo --gpus 2 --set tables.item.rows=0",
    "teacher-tune --teacher t --pairs p --out o",
    "baseline trees --data d --run r",
    "evaluate --run r --data d",
    "explain --run r --data d --request 1",
    "export --run r --out o",
)
SCRIPT = f"""
import sys
from prectr_torchrec.cli.main import main
for command in {COMMANDS!r}:
    sys.argv = ["prectr", *command.split()]
    try:
        main()
    except SystemExit as exit:
        print(exit.code, "torch" in sys.modules)
"""


def test_mistakes_end_in_one_line_before_torch_is_imported(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    assert done.stdout.splitlines() == ["2 False"] * len(COMMANDS), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(COMMANDS) and "features.user_name: no sample column of ids has this name" in errors[2]


def test_what_a_configuration_names_has_to_be_there(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, small_config())
    check_training(small_config(), tmp_path)
    with pytest.raises(ValueError, match=r"text.path: there is no folder /nowhere"):
        check_training(small_config(text={"path": "/nowhere"}), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"/nowhere: no run directory"):
        check_training(small_config(train={"init_from": {"run": "/nowhere"}}), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no run directory"):
        check_run(tmp_path, "best", tmp_path)


def test_samples_with_longer_histories_do(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, small_config())
    shorter = {"history_length": 3, "peer_length": 4, "requests_per_row_group": 16}
    check_training(small_config(data=shorter), tmp_path)
    with pytest.raises(ValueError, match=r"prepared with data.history_length 6, the configuration has 9; prepare again"):
        check_training(small_config(data=shorter | {"history_length": 9}), tmp_path)
    assert (tmp_path / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("demo", {}, []),
        ("demo", {"data.item_attributes": ["category_id", "brand_id", "color"]}, ["data.item_attributes: 'color' is not used"]),
        ("demo", {"data.user_attributes": ["city"]}, ["data.user_attributes: 'city' is not used: no feature reads user_city"]),
        ("demo_dnn", {"losses.load_balance.weight": 0.1}, ["losses.load_balance.weight is not used: the ranker, of kind"]),
        (
            "demo_dnn",
            {"features.peer_item_id.table": "item"},
            ["features.peer_item_id.table is not used: no part of the model compares peer events"],
        ),
        ("demo", {"tables.item.buckets": 10}, ["tables.item.buckets is not used: tables.item is not shared out by buckets"]),
        ("demo", {"losses.debias.weight": 0.0, "losses.debias.margin": 1.0}, ["losses.debias.margin is not used"]),
        (
            "demo",
            {"data.raw.items.columns": {"titel": "name"}},
            ["data.raw.items.columns.titel is not used: no column of ours has this name (did you mean 'title'?)"],
        ),
        ("demo", {"data.label_window": 3600}, ["data.label_window is not used: no label has a time of its own"]),
        ("demo", {"data.label_window": 3600, "data.labels": {"click": {"time": "t"}}}, []),
        ("demo", {"data.labels": {"click": {"time": "t"}}, "data.raw.impressions.columns": {"t": "clicked at"}}, []),
        (
            "demo",
            {"data.raw.actions": {"path": "ubi.csv", "columns": {"action": "action_name", "when": "time"}}},
            ["data.raw.actions.columns.when is not used: no column of ours has this name"],
        ),
        ("demo", {"train.max_skipped": 3}, ["train.max_skipped is not used: train.on_bad_loss is not 'skip'"]),
    ],
)
def test_what_is_written_and_not_read_is_told(name: str, overrides: dict[str, Any], expected: list[str]) -> None:
    given = [f"{key}={value}" for key, value in overrides.items()]
    found = unused_settings(load_config(name, given), written_settings(name, given))
    assert len(found) == len(expected)
    assert all(warning.startswith(begin) for warning, begin in zip(found, expected, strict=True))


def test_what_stands_in_a_file_of_ones_own_is_told_and_what_it_inherits_is_not(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: demo_dnn\ntext: {late_dim: 8}\n", encoding="utf-8")
    (tmp_path / "more.yaml").write_text("base: own.yaml\nmodel: {position_bias: false, position_count: 9}\n", encoding="utf-8")
    path = tmp_path / "more.yaml"
    assert unused_settings(load_config(path), written_settings(path)) == [
        "text.late_dim is not used: text.interaction is not 'late'",
        "model.position_count is not used: model.position_bias is off",
    ]


def test_the_configuration_that_a_run_keeps_tells_nothing_that_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config("prectr_v1")), encoding="utf-8")
    assert unused_settings(load_config(path), written_settings(path)) == []
