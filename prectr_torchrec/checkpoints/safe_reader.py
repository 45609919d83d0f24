"""Reads a checkpoint that anybody may have made: of its pickled metadata no more than Distributed Checkpoint's own classes."""

from __future__ import annotations

import pathlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from prectr_torchrec.checkpoints.manifest import METADATA


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint says of its tensors.

    Raises:
        ValueError: it is damaged, or holds what no checkpoint of ours holds; names the file. None of it was run.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            found = _Unpickler(file).load()
        _check(found, folder)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may end in any of them
        raise ValueError(f"{path}: these are no checkpoint's metadata: {first_line(error)}") from None
    return found


def load_tensors(state: dict[str, Any], folder: Path, *, no_dist: bool = False) -> None:
    """Loads tensors in place, as `torch.distributed.checkpoint.load`; collective unless `no_dist`.

    Raises:
        ValueError: a file of the checkpoint is damaged; names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=_Reader(folder), no_dist=no_dist)
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise ValueError(f"{folder}: its files are damaged: {first_line(failure)}") from None


def load_state(path: Path, keys: set[str]) -> dict[str, Any]:
    """What `torch.save` wrote of a job of one file: tensors and plain values, with these keys.

    Raises:
        ValueError: it is damaged, or holds anything else; names it. None of it was run.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged archive may end in any of them
        raise ValueError(f"{path}: damaged: {first_line(error)}; remove it to begin anew") from None
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(f"{path}: not what this command saves; remove it to begin anew")
    return found


def first_line(error: BaseException) -> str:
    """The beginning of a message that may be long, or have none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class _Reader(dcp.FileSystemReader):
    """Distributed Checkpoint's reader of files; tensors it loads with `weights_only`, and there is nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = read_metadata(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is none of Distributed Checkpoint's classes")
        return _CLASSES[module, name]


_OF_METADATA = (
    "Metadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
_CLASSES: dict[tuple[str, str], Callable[..., Any]] = {
    **{("torch.distributed.checkpoint.metadata", name): getattr(metadata, name) for name in _OF_METADATA},
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,
    **{(module, "PosixPath"): pathlib.PurePosixPath for module in ("pathlib", "pathlib._local")},  # where it was saved
}


def _check(found: Any, folder: Path) -> None:
    """That all is of the kinds that it claims to be; an unpickler puts anything anywhere."""
    if type(found) is not Metadata:
        raise ValueError(f"it holds a {type(found).__name__}")
    for name, tensor in found.state_dict_metadata.items():
        if type(tensor) is not TensorStorageMetadata or not isinstance(tensor.properties.dtype, torch.dtype):
            raise ValueError(f"{name!r} is no tensor")
        for size in (tensor.size, *(size for chunk in tensor.chunks for size in (chunk.offsets, chunk.sizes))):
            if type(size) is not torch.Size:
                raise ValueError(f"{name!r} has no sizes")
    for index, info in found.storage_data.items():
        if type(index) is not metadata.MetadataIndex or type(info) is not filesystem._StorageInfo:
            raise ValueError("it does not say where its tensors are")
        plain = type(info.offset) is int and type(info.length) is int and not info.transform_descriptors
        if not plain or Path(info.relative_path).name != info.relative_path or not (folder / info.relative_path).is_file():
            raise ValueError(f"{index.fqn!r} lies in {info.relative_path!r}, which is no file of the checkpoint")
