"""Vectors of titles that were encoded before, the latest ones used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from prectr_torchrec.modules import CrossInteraction, RankingModel
from prectr_torchrec.serving.digests import Files, check
from prectr_torchrec.serving.export import TITLES
from prectr_torchrec.serving.exported_tables import map_tensors
from prectr_torchrec.serving.trial import check_finite
from prectr_torchrec.system.plain_files import read_json

TITLES_ABOUT = "titles.json"
"""Written last: of which ranker the titles are, and their size and digest."""
TOKENS, VECTORS = "tokens", "vectors"
BATCH = 1024
"""Titles read, encoded or kept at a time."""


class TitleVectors:
    """Keeps what the encoder made of a title, by the tokens that it read: an item whose title changes is encoded anew.

    Safe to use from several threads.

    Args:
        encode: (N, W) int64 tokens -> (N, ...) vectors.
        capacity: titles held; the one not used for longest makes room.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], capacity: int) -> None:
        self._encode, self.capacity = encode, capacity
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self._vectors: Tensor | None = None
        self.lock = threading.Lock()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Args: tokens: (T, W) int64, distinct rows. Returns: (T, ...)."""
        keys = token_keys(tokens)
        with self.lock:
            known = [self._places.get(key, -1) for key in keys]
            for key, place in zip(keys, known, strict=True):
                if place >= 0:
                    self._places.move_to_end(key)
            there = np.array(known) >= 0
            kept = self._vectors[torch.tensor(known)[torch.from_numpy(there)]] if self._vectors is not None else None
            self.hits += int(there.sum())
            self.misses += int((~there).sum())
        if there.all() and kept is not None:
            return kept
        missing = torch.from_numpy(np.flatnonzero(~there))
        fresh = self._encode(tokens[missing])
        self.add([keys[i] for i in missing.tolist()], fresh)
        if kept is None or not there.any():
            return fresh
        vectors = fresh.new_empty(len(keys), *fresh.shape[1:])
        vectors[missing], vectors[torch.from_numpy(np.flatnonzero(there))] = fresh, kept
        return vectors

    def add(self, keys: list[bytes], vectors: Tensor) -> None:
        """Keeps vectors (N, ...) by the keys (`token_keys`) of their titles; of more than `capacity` the last ones."""
        keys, vectors = keys[-self.capacity :], vectors[-self.capacity :]
        with self.lock:
            if self._vectors is None:
                self._vectors = vectors.new_empty(self.capacity, *vectors.shape[1:])  # the system gives pages as they are written
            places = []
            for key in keys:
                place = self._places.pop(key, -1)
                if place < 0:
                    full = len(self._places) >= self.capacity
                    place = self._places.popitem(last=False)[1] if full else len(self._places)
                self._places[key] = place
                places.append(place)
            self._vectors[torch.tensor(places, dtype=torch.long)] = vectors


def token_keys(tokens: Tensor) -> list[bytes]:
    """What a title of tokens (N, W) is known by."""
    rows = np.ascontiguousarray(tokens.numpy().astype(np.int32))
    return rows.view(f"V{rows.shape[1] * rows.itemsize}").ravel().tolist()


class _TitlesAbout(TypedDict):
    ranker: str
    files: Files


def load_title_vectors(titles: TitleVectors, folder: Path, ranker: str) -> None:
    """Fills the kept titles from the file of `index_titles`, with its first ones where there is no room for all.

    Args:
        titles: to be filled.
        folder: of the ranker; where it has no finished file of titles, nothing happens.
        ranker: the seal of its `export.json`.

    Raises:
        ValueError: the file is damaged, or of another ranker.
    """
    if not (folder / TITLES_ABOUT).is_file():
        return
    about: dict[str, Any] = read_json(folder / TITLES_ABOUT, _TitlesAbout)
    if about["ranker"] != ranker:
        raise ValueError(
            f"{folder / TITLES}: these are titles of another ranker; run `prectr index` again, or remove {TITLES_ABOUT}"
        )
    check(folder, about["files"])
    found = map_tensors(folder / TITLES, resident=0)
    check_finite(folder / TITLES, found)
    tokens, vectors = (found[name][: titles.capacity] for name in (TOKENS, VECTORS))
    for start in range(0, len(tokens), BATCH):
        titles.add(token_keys(tokens[start : start + BATCH]), vectors[start : start + BATCH])


def encoder_of_titles(model: RankingModel) -> Callable[[Tensor], Tensor] | None:
    """What encodes titles apart from queries: (N, W) tokens -> (N, ...); None where nothing does."""
    text = model.text_side()
    if text is None or text.interaction is None or isinstance(text.interaction, CrossInteraction):
        return None
    return text.encode
