import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import assert_same_end, last_step, start_ranks, train
from pair_files import write_pairs, write_teacher_scores
from ranks import kill_when
from small_run import MIXED, OF_EVERY_KIND, small_config, write_small_data

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import MANIFEST


def config_that_draws(data: Path) -> RunConfig:
    """With dropout, every kind of column, and rehearsal of the pairs beside the data."""
    taught = {"pairs": str(data.parent / "pairs.parquet"), "scores": [str(data.parent / "scores")], "batch_size": 8}
    return small_config(
        losses={"random_negatives": {"weight": 0.1}, "rehearsal": taught},
        train={"log_every": 4, "checkpoint_every": 3},
        **OF_EVERY_KIND | {"model": {**OF_EVERY_KIND["model"], "dropout": 0.2}},
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_second") and k != "seconds_left"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a run over it that nothing disturbed."""
    root = tmp_path_factory.mktemp("resume")
    write_teacher_scores(root / "scores", write_pairs(root / "pairs.parquet", queries=20))
    data = root / "data"
    write_small_data(data, config_that_draws(data))
    train(config_that_draws(data), data, root / "whole")
    return data, root / "whole"


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert_same_end(run, other)


def test_a_seeded_run_repeats_bit_for_bit(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    train(config_that_draws(data), data, tmp_path / "again")
    assert_same_run(tmp_path / "again", whole)


def test_killed_at_a_random_step_and_resumed_it_ends_the_same(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    steps = metrics(whole)[-1]["step"]
    at = random.SystemRandom().randrange(4, steps)
    run = tmp_path / "killed"
    kill_when(lambda: last_step(run) >= at, start_ranks(config_that_draws(data), data, run))
    print(f"killed at step {at} of {steps} or soon after; resumes from {sorted((run / 'checkpoints').glob('step-*'))}")
    train(config_that_draws(data), data, run)
    assert_same_run(run, whole)


def test_mixed_effects_go_on_with_the_same_draws_and_variances(tmp_path: Path) -> None:
    config = small_config(train={"log_every": 4, "checkpoint_every": 3}, **MIXED)
    data = write_small_data(tmp_path / "data", config)
    train(config, data, tmp_path / "whole")
    run = tmp_path / "killed"
    kill_when(lambda: last_step(run) >= 8, start_ranks(config, data, run))
    assert progress(run)["step"] < progress(tmp_path / "whole")["step"]
    train(config, data, run)
    assert_same_run(run, tmp_path / "whole")


def test_killed_while_it_saves_in_the_background_it_goes_on_from_the_save_before_and_ends_the_same(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, whole = uninterrupted
    config = config_that_draws(data)
    config.train.async_checkpoints = True
    run = tmp_path / "killed"
    for _ in range(5):  # the save may be done before the signal comes
        kill_when(lambda: last_step(run) >= 6 and saving(run) != [], start_ranks(config, data, run))
        if left := saving(run):
            break
        shutil.rmtree(run)
    last = json.loads((run / "checkpoints" / "index.json").read_text(encoding="utf-8"))["last"]
    assert left and last < left[0] and (run / "checkpoints" / last).is_dir()
    train(config, data, run)
    assert_same_run(run, whole)
    assert saving(run) == []


def saving(run: Path) -> list[str]:
    return [path.name.removeprefix(".").removesuffix(".saving") for path in (run / "checkpoints").glob(".step-*.saving")]


def test_killed_on_two_ranks_it_goes_on_alone_over_what_they_left(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    run = tmp_path / "fewer"
    kill_when(lambda: last_step(run) >= 12, start_ranks(config_that_draws(data), data, run))
    at = progress(run)
    output = train(config_that_draws(data), data, run, ranks=1)
    assert f"note: saved by 2 ranks at step {at['step']}, goes on with 1" in output
    lines = metrics(run)
    assert {line["step"] for line in lines if line.get("stage") == "train"} > {at["step"]}
    assert [line for line in lines if line["step"] <= at["step"]] == [
        line for line in metrics(whole) if line["step"] <= at["step"]
    ]
    assert progress(run)["position"] | {"step": 0} == progress(whole)["position"] | {"step": 0}
    twice = at["step"] + 2 * (progress(whole)["step"] - at["step"])  # but for batches that are not full
    assert abs(progress(run)["step"] - twice) <= 4


def progress(run: Path) -> dict[str, Any]:
    name = json.loads((run / "checkpoints" / "index.json").read_text(encoding="utf-8"))["last"]
    return dict(json.loads((run / "checkpoints" / name / "progress.json").read_text(encoding="utf-8")))


def test_other_samples_do_not_resume(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    other = tmp_path / "data"
    shutil.copytree(data, other)
    manifest = json.loads((other / MANIFEST).read_text(encoding="utf-8"))
    (other / MANIFEST).write_text(json.dumps(manifest | {"digest": "other"}), encoding="utf-8")
    output = train(config_that_draws(data), other, whole, ranks=1, code=2)
    assert "cannot be resumed by this job (samples: 'small' then, 'other' now)" in output


def test_another_configuration_does_not_resume(uninterrupted: tuple[Path, Path]) -> None:
    data, whole = uninterrupted
    other = config_that_draws(data)
    other.train.seed = 99
    output = train(other, data, whole, ranks=1, code=2)
    assert "was started with another configuration (train.seed: 1 then, 99 now)" in output
