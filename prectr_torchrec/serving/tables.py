"""Exported tables: written in pieces, looked up in memory or where they lie on disk."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import fbgemm_gpu  # noqa: F401 - its operators pack and unpack int8 rows
import torch
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedJaggedTensor

from prectr_torchrec.config import RunConfig

Precision = Literal["fp32", "fp16", "int8"]
INT8_EXTRA = 8
"""Bytes at the end of an int8 row: its scale and its offset, fp32 each."""
WEIGHT = "weight"
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_table(path: Path, pieces: Iterable[Tensor], rows: int, dim: int, precision: Precision) -> None:
    """Writes a table as a safetensors file with one tensor, `weight`: (rows, dim) fp32 or fp16, or (rows, dim + 8) uint8.

    Args:
        path: the file.
        pieces: runs of whole rows, in order; only one of them is held.
        rows, dim: of the table.
        precision: of the file.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.uint8}[precision]
    width = dim + INT8_EXTRA * (precision == "int8")
    size = rows * width * dtype.itemsize
    tensors = {WEIGHT: {"dtype": _NAMES[dtype], "shape": [rows, width], "data_offsets": [0, size]}}
    header = json.dumps({"__metadata__": {"precision": precision, "dim": str(dim)}, **tensors}).encode()
    header += b" " * (-len(header) % 64)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            packed = _pack(piece) if precision == "int8" else piece.to(dtype).contiguous()
            file.write(memoryview(packed.numpy()).cast("B"))
        assert file.tell() == 8 + len(header) + size


class Table:
    """Rows of an exported table.

    Args:
        path: file of `write_table`.
        resident: bytes; a smaller table is read into memory, a larger one stays on disk and is mapped.
    """

    def __init__(self, path: Path, resident: int) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            about = header[WEIGHT]
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable, as torch wants it, and never written
        self.precision: str = header["__metadata__"]["precision"]
        rows, width = about["shape"]
        flat = torch.frombuffer(mapped, dtype=_DTYPES[about["dtype"]], offset=8 + length, count=rows * width)
        self.on_disk = flat.numel() * flat.element_size() >= resident
        if self.on_disk and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # a row at a time: reading ahead would fill memory with its neighbours
        self.weight = (flat if self.on_disk else flat.clone()).view(rows, width)

    def __call__(self, rows: Tensor) -> Tensor:
        """Args: rows: (N,) int64. Returns: (N, dim) float32."""
        found = self.weight[rows]
        return _unpack(found) if self.precision == "int8" else found.float()


class ServedEmbeddings(nn.Module):
    """What `SearchEmbeddings` gives, from exported tables and without TorchRec's distributed machinery.

    Args:
        config: of the run.
        tables: by name.
    """

    def __init__(self, config: RunConfig, tables: dict[str, Any]) -> None:
        super().__init__()
        bags = config.bag_tables()
        self._tables = tables
        self._sequences = {name: f.table for name, f in config.features.items() if f.table not in bags}
        self._bags = {name: f.table for name, f in config.features.items() if f.table in bags}

    def forward(
        self, request_features: KeyedJaggedTensor, candidate_features: KeyedJaggedTensor
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """Returns the jagged vectors of each request feature (stride R) and the pooled (C, dim) of each candidate bag."""
        sequences, bags = {}, {}
        for name, table in self._sequences.items():
            ids = request_features[name]
            sequences[name] = JaggedTensor(self._tables[table](ids.values()), lengths=ids.lengths())
        for name, table in self._bags.items():
            ids = candidate_features[name]
            vectors, lengths = self._tables[table](ids.values()), ids.lengths()
            bag = torch.arange(len(lengths)).repeat_interleave(lengths)
            bags[name] = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add_(0, bag, vectors)
        return sequences, bags


def _pack(rows: Tensor) -> Tensor:
    return torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows.float().contiguous())


def _unpack(rows: Tensor) -> Tensor:
    return torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(rows)
