import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_model import Small, small_model

from prectr_torchrec.checkpoints import stateful
from prectr_torchrec.checkpoints.best import GROUPS, ValidationLoss
from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.checkpoints.manifest import FILES


def validated(ne: float | None) -> ValidationLoss | None:
    """A loss of half of the rows clicked, in all groups alike."""
    return None if ne is None else ValidationLoss(clicks=GROUPS, rows=[2.0] * GROUPS, loss=[2 * ne * math.log(2)] * GROUPS)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with small_model(tmp_path) as small:
        yield small


def test_a_checkpoint_restores_weights_and_states(small: Small) -> None:
    small.train()
    weights, states = small.weights(), small.states()
    checkpoints = Checkpoints(small.run)
    checkpoints.save(small.parts, {"step": 3})
    small.train()
    assert any(not torch.equal(weights[n], w) for n, w in small.weights().items())
    checkpoints.load("last", small.parts)
    assert checkpoints.progress() == {"step": 3}
    assert all(torch.equal(weights[n], w) for n, w in small.weights().items())
    assert all(torch.equal(states[n], s) for n, s in small.states().items())


def test_only_the_last_and_the_best_checkpoint_are_kept(small: Small) -> None:
    checkpoints = Checkpoints(small.run)
    for step, ne in ((1, 0.9), (2, 0.8), (3, None), (4, 0.85), (5, None)):
        checkpoints.save(small.parts, {"step": step}, validated(ne))
    assert checkpoints.index() == {"last": "step-000000005", "best": "step-000000002", "best_ne": pytest.approx(0.8)}
    assert sorted(p.name for p in checkpoints.folder.glob("step-*")) == ["step-000000002", "step-000000005"]


def test_without_a_validation_the_last_checkpoint_is_the_best(small: Small) -> None:
    checkpoints = Checkpoints(small.run)
    for step in (1, 2):
        checkpoints.save(small.parts, {"step": step})
    assert checkpoints.path("best") == checkpoints.path("last") == checkpoints.folder / "step-000000002"


def test_half_a_checkpoint_is_never_loaded(small: Small) -> None:
    small.train(steps=1)
    checkpoints = Checkpoints(small.run)
    checkpoints.save(small.parts, {"step": 1})
    half = checkpoints.folder / ".step-000000002.saving"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert checkpoints.path("last").name == "step-000000001"
    checkpoints.save(small.parts, {"step": 2})
    checkpoints.load("last", small.parts)
    assert checkpoints.progress() == {"step": 2}


def test_no_checkpoint_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no 'best' checkpoint; has `prectr train` run"):
        Checkpoints(tmp_path).path("best")


def save(checkpoints: Checkpoints, small: Small, *steps: int, ne: float | None = None) -> list[str]:
    """Saves at these steps; the names of what is kept then."""
    for step in steps:
        checkpoints.save(small.parts, {"step": step}, validated(ne))
    checkpoints.wait()
    return sorted(path.name for path in checkpoints.folder.glob("*step-*"))


def test_the_latest_checkpoints_and_the_best_are_kept(small: Small) -> None:
    checkpoints = Checkpoints(small.run, keep=3)
    save(checkpoints, small, 1, ne=0.5)
    assert save(checkpoints, small, 2, 3, 4, 5) == [f"step-00000000{n}" for n in (1, 3, 4, 5)]


def test_written_in_the_background_a_checkpoint_is_the_same(small: Small) -> None:
    at_once, background = Checkpoints(small.run / "a"), Checkpoints(small.run / "b", in_background=True)
    small.train()
    state = torch.get_rng_state()
    save(at_once, small, 1)
    background.save(small.parts, progress := {"step": 1, "epoch": 0})
    progress["epoch"] = 9
    small.spoil()  # what is written is of the step at which it was asked for
    background.wait()
    torch.manual_seed(99)
    at_once.load("last", small.parts)
    weights, states = small.weights(), small.states()
    small.train()
    torch.manual_seed(99)
    background.load("last", small.parts)
    assert background.progress() == {"step": 1, "epoch": 0}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[n], w) for n, w in small.weights().items())
    assert all(torch.equal(states[n], s) for n, s in small.states().items())


def test_a_save_in_the_background_that_fails_is_told_by_the_next_one(small: Small) -> None:
    checkpoints = Checkpoints(small.run, in_background=True)
    save(checkpoints, small, 1)
    index = checkpoints.folder / "index.json"
    whole = index.read_bytes()
    index.unlink()
    index.mkdir()
    checkpoints.save(small.parts, {"step": 2})
    with pytest.raises(IsADirectoryError, match=r"index\.json"):
        checkpoints.save(small.parts, {"step": 3})
    index.rmdir()
    index.write_bytes(whole)
    assert checkpoints.path("last").name == "step-000000001"
    save(checkpoints, small, 3)
    assert checkpoints.path("last").name == "step-000000003"


def damaged(checkpoints: Checkpoints, name: str, how: str) -> Path:
    """A file of a checkpoint, truncated, corrupt or missing."""
    path = next((checkpoints.folder / name).glob("*.distcp"))
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[:-100])
    elif how == "corrupt":
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    else:
        path.unlink()
    return path


@pytest.mark.parametrize("how", ["truncated", "corrupt", "missing"])
def test_a_broken_checkpoint_is_refused_and_the_run_goes_on_from_the_one_before(
    small: Small, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small.train()
    weights = small.weights()
    save(Checkpoints(small.run, keep=2), small, 1)
    small.train()
    save(Checkpoints(small.run, keep=2), small, 2, ne=0.5)
    checkpoints = Checkpoints(small.run, keep=2)
    path = damaged(checkpoints, "step-000000002", how)
    with pytest.raises(ValueError, match=f"{path}: {how}.*take another one: --checkpoint step-000000001"):
        checkpoints.load("best", {"model": small.model})
    checkpoints.use_newest_whole()
    noted = capsys.readouterr().err
    assert f"note: {path}: {how}" in noted and "training goes on from step-000000001" in noted
    checkpoints.load("last", small.parts)
    assert all(torch.equal(weights[n], w) for n, w in small.weights().items())
    assert checkpoints.index() == {"last": "step-000000001"} and checkpoints.progress() == {"step": 1}
    assert save(checkpoints, small, 2) == ["broken-step-000000002", "step-000000001", "step-000000002"]


def test_without_any_whole_checkpoint_a_run_says_so_and_leaves_all_as_it_is(small: Small) -> None:
    save(Checkpoints(small.run, keep=2), small, 1, 2)
    checkpoints = Checkpoints(small.run)
    paths = [damaged(checkpoints, f"step-00000000{n}", "truncated") for n in (1, 2)]
    with pytest.raises(ValueError, match="no checkpoint can be read") as refused:
        checkpoints.use_newest_whole()
    assert all(str(path) in str(refused.value) and path.exists() for path in paths)
    assert checkpoints.index()["last"] == "step-000000002"


def test_a_broken_manifest_is_named(small: Small) -> None:
    checkpoints = Checkpoints(small.run)
    save(checkpoints, small, 1)
    manifest = checkpoints.folder / "step-000000001" / FILES
    manifest.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{manifest}: not valid JSON"):
        Checkpoints(small.run).load("last", {"model": small.model})


def test_a_checkpoint_is_found_by_its_name(small: Small) -> None:
    checkpoints = Checkpoints(small.run, keep=2)
    save(checkpoints, small, 1, 2)
    assert checkpoints.path("step-000000001") == checkpoints.folder / "step-000000001"
    with pytest.raises(FileNotFoundError, match="no checkpoint 'first'; there are last, best, step-000000001, step-000000002"):
        checkpoints.path("first")


def test_random_states_of_another_kind_of_device_are_left(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.train(steps=1)
    checkpoints = Checkpoints(small.run)
    checkpoints.save(small.parts, {"step": 1})
    monkeypatch.setattr(stateful, "random_states", lambda device: {"cpu": torch.get_rng_state(), "cuda": torch.zeros(16)})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    checkpoints.load("last", small.parts)
    assert torch.equal(torch.get_rng_state(), before)
