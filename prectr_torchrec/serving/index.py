"""`prectr index`: encodes the titles of a catalogue ahead, so that no request waits for them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prectr_torchrec.config.data import RawTable
from prectr_torchrec.data.raw.files import given_files
from prectr_torchrec.data.raw.readings import text
from prectr_torchrec.data.raw.source import Table, open_duckdb, open_source
from prectr_torchrec.data.tokens import TextTokenizer
from prectr_torchrec.runs.workspace import replace_text, replacing
from prectr_torchrec.serving.digests import SEAL, describe
from prectr_torchrec.serving.export import TEXT, TITLES, read_about
from prectr_torchrec.serving.exported_tables import Pieces, write_tensors
from prectr_torchrec.serving.titles import BATCH, TITLES_ABOUT, TOKENS, VECTORS
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.progress import Progress

if TYPE_CHECKING:
    from prectr_torchrec.serving.ranker import Ranker

_CHARACTERS = 2**18
_MEMORY = "1GB"
"""What reading the titles may take."""


@only_local
@writes_folder("folder")
def index_titles(ranker: Ranker, folder: Path, items: Path, column: str = "title") -> int:
    """Writes what the encoder makes of each distinct title, in the order of the file, to `titles.safetensors`.

    Args:
        ranker: of the folder.
        folder: that it was loaded from, and where the file goes.
        items: Parquet or CSV files of items, as a file, folder or glob; where not all titles fit into memory when served, the
            first ones are taken.
        column: of the titles.

    Returns:
        The number of titles.

    Raises:
        RawLogError: a file has no such column of texts, or a row that cannot be read; names it.
        ValueError: the ranker keeps no titles.
    """
    if ranker.titles is None:
        raise ValueError(f"{folder}: this ranker reads query and title together, or no texts at all; there is nothing to keep")
    tokens = _distinct_tokens(items, column, TextTokenizer(folder / TEXT), ranker.config.text.title_tokens)

    def batches() -> Iterator[Tensor]:
        return (torch.from_numpy(tokens[start : start + BATCH]) for start in range(0, len(tokens), BATCH))

    def vectors() -> Iterator[Tensor]:
        with torch.inference_mode(), Progress("encoding", total=len(tokens), unit="titles") as progress:
            for batch in batches():
                progress.update(len(batch))
                yield ranker.relevance.encode(batch.long())

    with torch.inference_mode():
        example = ranker.relevance.encode(torch.ones(1, tokens.shape[1], dtype=torch.long))
    (folder / TITLES_ABOUT).unlink(missing_ok=True)
    with replacing(folder / TITLES) as path:
        write_tensors(
            path,
            {
                TOKENS: Pieces(torch.int32, tokens.shape, batches()),
                VECTORS: Pieces(example.dtype, (len(tokens), *example.shape[1:]), vectors()),
            },
        )
    about = {"ranker": read_about(folder)[SEAL], "files": describe(folder, [folder / TITLES])}
    replace_text(folder / TITLES_ABOUT, json.dumps(about, indent=1))
    return len(tokens)


def _distinct_tokens(items: Path, column: str, tokenizer: TextTokenizer, width: int) -> NDArray[np.int32]:
    """(N, width) tokens of the distinct titles, in the order of the files; no more of the texts than a batch is in memory."""
    seen: set[bytes] = set()
    found = [np.zeros((0, width), np.int32)]
    with open_duckdb(memory_limit=_MEMORY) as con:
        source = open_source(con, "items", RawTable(path=""), given_files("items", items), [column])
        table = Table(source, {column: text()}, {column: "title"})
        try:
            table.check(con)
            for batch in con.sql(f"SELECT title FROM ({table.select()}) WHERE title <> ''").to_arrow_reader(BATCH):
                keys = {hashlib.md5(title.encode()).digest(): title for title in batch.column(0).to_pylist()}
                new = [title for key, title in keys.items() if key not in seen]
                seen |= keys.keys()
                found += [tokenizer.encode(titles, width).astype(np.int32) for titles in _of_length(new)]
        except duckdb.OutOfMemoryException:
            raise ValueError(
                f"{items}: its titles take more than {_MEMORY} to read; write the file in smaller row groups"
            ) from None
    return np.concatenate(found)


def _of_length(titles: list[str]) -> Iterator[list[str]]:
    """The titles in pieces of `_CHARACTERS` or little more: a tokenizer holds many times as much as it reads."""
    ends = list(itertools.accumulate(map(len, titles)))
    for _, numbered in itertools.groupby(zip(ends, titles, strict=True), key=lambda at: at[0] // _CHARACTERS):
        yield [title for _, title in numbered]
