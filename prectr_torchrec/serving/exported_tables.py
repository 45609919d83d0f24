"""Exported tables: written in pieces, looked up in memory or where they lie on disk."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import fbgemm_gpu  # noqa: F401 - its operators pack and unpack int8 rows
import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedJaggedTensor
from typing_extensions import TypedDict

from prectr_torchrec.config.tables import MANAGED_IDS, FeatureConfig, bag_tables

RowPrecision = Literal["fp32", "fp16", "int8"]
INT8_EXTRA = 8
"""Bytes at the end of an int8 row: its scale and its offset, fp32 each."""
WEIGHT, IDS, ROWS, SHARED = "weight", "ids", "rows", "shared"
NO_ID = torch.iinfo(torch.int64).max
"""Fills the places of a managed table that no id has."""
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_HEADER_BYTES = 2**20


class _Header(TypedDict):
    dtype: Literal["F32", "F16", "U8", "I32", "I64"]
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


def write_table(path: Path, pieces: Iterable[Tensor], rows: int, dim: int, precision: RowPrecision) -> None:
    """Writes a table as a safetensors file with one tensor, `weight`: (rows, dim) fp32 or fp16, or (rows, dim + 8) uint8.

    Args:
        path: the file.
        pieces: runs of whole rows, in order; only one of them is held.
        rows, dim: of the table.
        precision: of the file.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.uint8}[precision]
    packed = (_pack(piece) if precision == "int8" else piece.to(dtype) for piece in pieces)
    write_tensors(path, {WEIGHT: Pieces(dtype, (rows, dim + INT8_EXTRA * (precision == "int8")), packed)})


def write_ids(path: Path, ids: Callable[[], Iterable[Tensor]], rows: Callable[[], Iterable[Tensor]], shared: Tensor) -> None:
    """Writes the map of a managed table: `ids` (n,) ascending, the `rows` (n,) that they have, and the `shared` row of the ids
    that have none, of each of the equal parts that the range of ids was split into.

    Args:
        path: the file.
        ids, rows: each call goes through the pieces anew; places without an id are `NO_ID`.
        shared: (parts,) int64.
    """
    count = sum(int((piece != NO_ID).sum()) for piece in ids())
    kept = (row[piece != NO_ID] for piece, row in zip(ids(), rows(), strict=True))
    there = (piece[piece != NO_ID] for piece in ids())
    write_tensors(
        path,
        {
            IDS: Pieces(torch.int64, (count,), _ascending(there)),
            ROWS: Pieces(torch.int64, (count,), kept),
            SHARED: Pieces(torch.int64, (len(shared),), [shared]),
        },
    )


class Pieces(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


def write_tensors(path: Path, tensors: dict[str, Pieces]) -> None:
    """Writes a safetensors file, one piece at a time."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for piece in tensor.pieces:
                piece.contiguous().numpy().tofile(file)
        assert file.tell() == 8 + len(text) + end


def map_tensors(path: Path, resident: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file of ours; read into memory if the file has fewer bytes than `resident`, else mapped.

    Raises:
        ValueError: it is none, or truncated; names it.
    """
    with path.open("rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        try:
            header = TypeAdapter(dict[str, _Header]).validate_json(file.read(min(length, _HEADER_BYTES)))
        except ValidationError:
            raise ValueError(f"{path}: no file of tensors: its header cannot be read") from None
        for name, about in header.items():
            start, end = about["data_offsets"]
            if end - start != math.prod(about["shape"]) * _DTYPES[about["dtype"]].itemsize or 8 + length + end > size:
                raise ValueError(f"{path}: {name!r} is not whole: {size:,} bytes are there")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable, as torch wants it, and never written
    on_disk = size >= resident
    if on_disk and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # a row at a time: reading ahead would fill memory with its neighbours
    tensors = {}
    for name, about in header.items():
        dtype, start, count = _DTYPES[about["dtype"]], 8 + length + about["data_offsets"][0], math.prod(about["shape"])
        flat = torch.frombuffer(mapped, dtype=dtype, offset=start, count=count) if count else torch.empty(0, dtype=dtype)
        tensors[name] = (flat if on_disk else flat.clone()).view(about["shape"])
    return tensors


class Table:
    """Rows of an exported table.

    Args:
        path: file of `write_table`.
        ids: file of `write_ids`, of managed tables.
        resident: bytes; a smaller file is read into memory, a larger one stays on disk and is mapped.
        shape: (rows, dim) of the table.

    Raises:
        ValueError: a file is damaged, or of another table; names it.
    """

    def __init__(self, path: Path, ids: Path | None, resident: int, shape: tuple[int, int]) -> None:
        tensors = map_tensors(path, resident)
        self.weight = tensors.get(WEIGHT, torch.empty(0, 0))
        extra = INT8_EXTRA * (self.weight.dtype == torch.uint8)
        if tuple(self.weight.shape) != (shape[0], shape[1] + extra):
            raise ValueError(f"{path}: a table of {tuple(self.weight.shape)} in place of {shape}")
        self._map = map_tensors(ids, resident) if ids is not None else None
        if self._map is not None and self._map.keys() != {IDS, ROWS, SHARED}:
            raise ValueError(f"{ids}: no map of ids to rows")

    def __call__(self, ids: Tensor) -> Tensor:
        """Args: ids: (N,) int64, table rows, or mixed ids of a managed table. Returns: (N, dim) float32."""
        found = self.weight[ids if self._map is None else self._rows_of(ids, self._map)]
        return _unpack(found) if found.dtype == torch.uint8 else found.float()

    @staticmethod
    def _rows_of(ids: Tensor, map_: dict[str, Tensor]) -> Tensor:
        known, shared = map_[IDS], map_[SHARED]
        part = -(-MANAGED_IDS // len(shared))
        rows = shared[ids.div(part, rounding_mode="floor")]
        if not len(known):
            return rows
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        return torch.where(known[place] == ids, map_[ROWS][place], rows)


class ServedEmbeddings(nn.Module):
    """What `SearchEmbeddings` gives, from exported tables and without TorchRec's distributed machinery.

    Args:
        features: of the run.
        tables: by name.
    """

    def __init__(self, features: dict[str, FeatureConfig], tables: dict[str, Table]) -> None:
        super().__init__()
        bags = bag_tables(features)
        self._tables = tables
        self._sequences = {name: f.table for name, f in features.items() if f.table not in bags}
        self._bags = {name: f for name, f in features.items() if f.table in bags}

    def forward(
        self, request_features: KeyedJaggedTensor, candidate_features: KeyedJaggedTensor
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """As of `SearchEmbeddings`."""
        sequences, bags = {}, {}
        for name, table in self._sequences.items():
            ids = request_features[name]
            sequences[name] = JaggedTensor(self._tables[table](ids.values()), lengths=ids.lengths())
        for name, feature in self._bags.items():
            ids = (candidate_features if name.startswith("candidate_") else request_features)[name]
            vectors, lengths = self._tables[feature.table](ids.values()), ids.lengths()
            bag = torch.arange(len(lengths)).repeat_interleave(lengths)
            if feature.weights:
                vectors = vectors * ids.weights().unsqueeze(1)
            pooled = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add_(0, bag, vectors)
            mean = feature.pooling == "mean" and not feature.weights  # whose weights are shares already
            bags[name] = pooled / lengths.clamp(min=1).unsqueeze(1) if mean else pooled
        return sequences, bags


def _pack(rows: Tensor) -> Tensor:
    return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows.float().contiguous())


def _unpack(rows: Tensor) -> Tensor:
    return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(rows)


def _ascending(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    last = -1
    for piece in pieces:
        if len(piece):
            assert last < int(piece[0]) and bool((piece[1:] > piece[:-1]).all()), "the ranks' ids are sorted"
            last = int(piece[-1])
        yield piece
