"""Tensors of a Distributed Checkpoint, whatever it was sharded over, read piece by piece and without a process group."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from prectr_torchrec.checkpoints.safe_reader import first_line, load_tensors, read_metadata


class _Shard(NamedTuple):
    """A rectangle of a matrix, and where its numbers begin, row after row, in a file."""

    row: int
    column: int
    rows: int
    columns: int
    path: Path
    offset: int


class SavedTensors:
    """The tensors of a checkpoint by name.

    Args:
        checkpoint: folder of Distributed Checkpoint files.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint
        self._metadata = read_metadata(checkpoint)
        found = self._metadata.state_dict_metadata
        self._tensors = {name: about for name, about in found.items() if isinstance(about, TensorStorageMetadata)}

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].properties.dtype

    def load(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, whole, by the rest of their names."""
        state = {name: torch.empty(self.shape(name), dtype=self.dtype(name)) for name in self.names(prefix)}
        load_tensors(state, self._folder, no_dist=True)
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def pieces(self, name: str, nbytes: int = 2**24) -> Iterator[Tensor]:
        """A matrix as runs of whole rows, in order; no more than about `nbytes` of it are in memory. A vector is one column."""
        rows, columns = (*self.shape(name), 1)[:2]
        dtype = self.dtype(name)
        width = columns * dtype.itemsize
        step, shards = max(nbytes // width, 1), self._shards(name)
        for start in range(0, rows, step):
            piece = torch.empty(min(step, rows - start), columns, dtype=dtype)
            filled = 0
            for shard in shards:
                filled += _read(shard, start, piece)
            if filled != piece.numel():
                raise ValueError(f"{self._folder}: the shards of {name} leave holes or overlap")
            yield piece

    def _shards(self, name: str) -> list[_Shard]:
        stored = {(index.fqn, tuple(index.offset or ())): info for index, info in self._metadata.storage_data.items()}
        shards = []
        for chunk in self._tensors[name].chunks:
            info = stored[name, tuple(chunk.offsets)]
            path = self._folder / info.relative_path
            offset = info.offset + _offset_of_numbers(path, info.offset, info.length, tuple(chunk.sizes))
            (row, column), (rows, columns) = (*chunk.offsets, 0)[:2], (*chunk.sizes, 1)[:2]
            shards.append(_Shard(row, column, rows, columns, path, offset))
        return shards


def _offset_of_numbers(path: Path, start: int, length: int, sizes: tuple[int, ...]) -> int:
    """Where the numbers begin within a saved tensor, which is an archive of `torch.save`; only its index is read."""
    try:
        with path.open("rb") as file:
            about = torch.load(_Slice(file, start, length), map_location="meta", weights_only=True)  # type: ignore[arg-type]
        assert tuple(about.shape) == sizes and about.is_contiguous()
    except (RuntimeError, pickle.UnpicklingError, AssertionError) as error:
        raise ValueError(f"{path}: damaged: no tensor of {sizes} at byte {start:,}: {first_line(error)}") from None
    return int(about.untyped_storage()._checkpoint_offset) + about.storage_offset() * about.element_size()


class _Slice(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        return self._file.seek(self._start + origin + offset) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self._file.read(min(len(buffer), self._length - self.tell()))
        buffer[: len(found)] = found
        return len(found)


def _read(shard: _Shard, start: int, piece: Tensor) -> int:
    """Copies what a shard has of the rows from `start` on into `piece`; returns how many numbers."""
    first, last = max(start, shard.row), min(start + piece.shape[0], shard.row + shard.rows)
    if first >= last:
        return 0
    numbers = (last - first) * shard.columns
    with shard.path.open("rb") as file:
        file.seek(shard.offset + (first - shard.row) * shard.columns * piece.element_size())
        read = np.fromfile(file, dtype=np.uint8, count=numbers * piece.element_size())
    if len(read) != numbers * piece.element_size():
        raise ValueError(f"{shard.path}: truncated")
    block = torch.from_numpy(read).view(piece.dtype).view(last - first, shard.columns)
    piece[first - start : last - start, shard.column : shard.column + shard.columns] = block
    return numbers
