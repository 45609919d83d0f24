"""Writes a checkpoint's files and sums them up on the way: a file as large as memory is not read again to be described."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem

from prectr_torchrec.checkpoints.manifest import Manifest


class ChecksumWriter(FileSystemWriter):
    """Distributed Checkpoint's writer to files.

    Attributes:
        files: what the manifest says of the files that this rank wrote.
    """

    def __init__(self, folder: Path) -> None:
        # copied as it is written: copying ahead takes CUDA streams in the writer's own thread, which knows of GPU 0 only
        super().__init__(folder, per_thread_copy_ahead=0)
        self.fs = _Files()

    @property
    def files(self) -> Manifest:
        return {name: about for name, about in cast(_Files, self.fs).described.items() if name.endswith(".distcp")}


class _Files(FileSystem):
    def __init__(self) -> None:
        self.described: Manifest = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with _SummedFile(path) as file, io.BufferedWriter(cast(io.RawIOBase, file), 1 << 20) as stream:
            yield stream
        self.described[Path(path).name] = {"bytes": file.size, "crc32": f"{file.crc32:08x}"}


class _SummedFile(io.FileIO):
    """A file written from its beginning to its end."""

    crc32 = 0
    size = 0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "wb")

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.crc32 = zlib.crc32(memoryview(data)[:written], self.crc32)
        self.size += written
        return written
