"""`prectr index`: encodes the titles of a catalogue ahead, so that no request waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prectr_torchrec.data.tokens import TextTokenizer
from prectr_torchrec.data.workspace import replacing
from prectr_torchrec.modules import PRECTR, CrossInteraction
from prectr_torchrec.paths import only_local
from prectr_torchrec.serving.export import TEXT, TITLES
from prectr_torchrec.serving.tables import Pieces, map_tensors, write_tensors
from prectr_torchrec.serving.titles import TitleVectors, token_keys
from prectr_torchrec.serving.trial import check_finite

if TYPE_CHECKING:
    from prectr_torchrec.serving.ranker import Ranker

TOKENS, VECTORS = "tokens", "vectors"
_BATCH = 1024


@only_local
def index_titles(ranker: Ranker, folder: Path, items: Path, column: str = "title") -> int:
    """Writes what the encoder makes of each distinct title, in the order of the file, to `titles.safetensors`.

    Args:
        ranker: of the folder.
        folder: that it was loaded from, and where the file goes.
        items: a Parquet file of items; where not all titles fit into memory when served, the first ones are taken.
        column: of the titles.

    Returns:
        The number of titles.

    Raises:
        ValueError: the file has no such column of texts, or the ranker keeps no titles.
    """
    if ranker.titles is None:
        raise ValueError(f"{folder}: this ranker reads query and title together, or no texts at all; there is nothing to keep")
    schema = pq.read_schema(items)
    of_texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if column not in schema.names or not any(check(schema.field(column).type) for check in of_texts):
        raise ValueError(f"{items}: no column {column!r} of texts; columns are {', '.join(schema.names)}")
    titles = pq.read_table(items, columns=[column])[column].combine_chunks().drop_null().unique().to_pylist()
    tokenizer, width = TextTokenizer(folder / TEXT), ranker.config.text.title_tokens

    def tokens() -> Iterator[Tensor]:
        for start in range(0, len(titles), _BATCH):
            yield torch.from_numpy(tokenizer.encode(titles[start : start + _BATCH], width))

    def vectors() -> Iterator[Tensor]:
        with torch.inference_mode():
            for batch in tokens():
                yield ranker.relevance.encode(batch.long())

    with torch.inference_mode():
        example = ranker.relevance.encode(torch.ones(1, width, dtype=torch.long))
    with replacing(folder / TITLES) as path:
        write_tensors(path, {
            TOKENS: Pieces(torch.int32, (len(titles), width), tokens()),
            VECTORS: Pieces(example.dtype, (len(titles), *example.shape[1:]), vectors()),
        })  # fmt: skip
    return len(titles)


def warm(titles: TitleVectors, path: Path) -> None:
    """Fills the kept titles from the file of `index_titles`, with its first ones where there is no room for all."""
    found = map_tensors(path, resident=0)
    check_finite(path, found)
    tokens, vectors = (found[name][: titles.capacity] for name in (TOKENS, VECTORS))
    for start in range(0, len(tokens), _BATCH):
        titles.add(token_keys(tokens[start : start + _BATCH]), vectors[start : start + _BATCH])


def keeps_titles(prectr: PRECTR) -> bool:
    """Whether titles are encoded apart from queries."""
    interaction = prectr.relevance.interaction
    return interaction is not None and not isinstance(interaction, CrossInteraction)
