"""Folders of others: what they hold is read, and none of it runs."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config, write_small_data
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from prectr_torchrec.checkpoints.inspection import inspect_checkpoint
from prectr_torchrec.checkpoints.manifest import FILES, METADATA, describe_files, write_manifest
from prectr_torchrec.checkpoints.safe_reader import read_metadata
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain
from prectr_torchrec.runs.layout import checkpoint_path, load_run, write_checkpoint_index
from prectr_torchrec.serving.export import export
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003}]}


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and `run`."""
    folder = tmp_path_factory.mktemp("untrusted")
    config = small_config(train=STAGES)
    write_small_data(folder / "data", config, requests=32)
    with process_group("cpu") as process:
        Trainer(config, folder / "data", folder / "run", process).train()
    return folder


@pytest.fixture
def theirs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoiled."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def checkpoint(run: Path) -> Path:
    return checkpoint_path(run, "last")


def rewrite(folder: Path, metadata: Any) -> None:
    """Replaces a checkpoint's metadata, and what the manifest says of all files."""
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
    (folder / FILES).unlink()
    write_manifest(folder, describe_files(folder.iterdir()))


def metadata_of(folder: Path) -> Metadata:
    return FileSystemReader(folder).read_metadata()


def train(config: Any, data: Path, run: Path) -> None:
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()


def initialise(run: Path, data: Path) -> None:
    tree = load_run(run).model_dump(mode="json")
    tree["train"]["init_from"] = {"run": str(run)}
    train(validate_config(tree, "test"), data, run.with_name("other"))


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "evaluate": lambda run, data: evaluate(["--run", str(run), "--data", str(data)]),
    "explain": lambda run, data: explain(run, data, 1000000000029),
    "inspect": lambda run, data: inspect_checkpoint(run),
    "export": lambda run, data: export(run, run.with_name("exported")),
    "resume": lambda run, data: train(load_run(run), data, run),
    "init_from": initialise,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_place_of_the_metadata_is_refused(reader: str, trained: Path, theirs: Path) -> None:
    mark = theirs.with_name("ran")
    rewrite(checkpoint(theirs), Touches(mark))
    assert pickle.loads((checkpoint(theirs) / METADATA).read_bytes()) is None and mark.exists()  # it is armed
    mark.unlink()
    with pytest.raises(ValueError, match=r"\.metadata: these are no checkpoint's metadata: it names pathlib"):
        READERS[reader](theirs, trained / "data")
    assert not mark.exists()


def test_a_checkpoint_without_its_manifest_is_refused(trained: Path, theirs: Path) -> None:
    (checkpoint(theirs) / FILES).unlink()
    with pytest.raises(ValueError, match=rf"{FILES}: missing"):
        READERS["evaluate"](theirs, trained / "data")


def hide(metadata: Metadata, mark: Path) -> None:
    metadata.planner_data = {"anything": Touches(mark)}


def elsewhere(metadata: Metadata, mark: Path) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../../config.yaml"


def as_bytes(metadata: Metadata, mark: Path) -> None:
    """Distributed Checkpoint unpickles whatever is no tensor."""
    metadata.state_dict_metadata[next(iter(metadata.state_dict_metadata))] = BytesStorageMetadata()


@pytest.mark.parametrize("spoil", [hide, elsewhere, as_bytes])
def test_metadata_of_other_things_are_refused(spoil: Callable[[Metadata, Path], None], theirs: Path) -> None:
    folder, mark = checkpoint(theirs), theirs.with_name("ran")
    metadata = metadata_of(folder)
    spoil(metadata, mark)
    rewrite(folder, metadata)
    with pytest.raises(ValueError, match=r"\.metadata: these are no checkpoint's metadata"):
        read_metadata(folder)
    assert not mark.exists()


def test_a_pickle_in_place_of_a_tensor_is_refused(trained: Path, theirs: Path) -> None:
    folder, mark = checkpoint(theirs), theirs.with_name("ran")
    metadata = metadata_of(folder)
    torch.save(Touches(mark), folder / "__0_0.distcp")
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, (folder / "__0_0.distcp").stat().st_size
    rewrite(folder, metadata)
    for reader in ("evaluate", "export"):
        with pytest.raises(ValueError, match=r"step-\d+.*damaged"):
            READERS[reader](theirs, trained / "data")
    assert not mark.exists()


def test_a_checkpoint_of_another_folder_is_refused(trained: Path, theirs: Path) -> None:
    write_checkpoint_index(theirs, {"last": "../../../elsewhere"})
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*elsewhere"):
        READERS["evaluate"](theirs, trained / "data")


@pytest.mark.parametrize(
    "name", ["config.yaml", "prepared.json", "tokenizer/tokenizer.json", "tokenizer/document_frequency.json"]
)
def test_a_run_of_other_settings_or_tokens_than_its_checkpoint_is_refused(name: str, trained: Path, theirs: Path) -> None:
    path = theirs / name
    path.write_bytes(path.read_bytes() + b"\n")
    for reader in ("evaluate", "explain", "export"):
        with pytest.raises(ValueError, match=rf"{path}: truncated or grown"):
            READERS[reader](theirs, trained / "data")
