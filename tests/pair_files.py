"""Generated pairs of query and title whose relevance follows the words they share, and a teacher that knows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sample_files import WORDS

from prectr_torchrec.config.data import Levels
from prectr_torchrec.data.pairs.pairs import PAIRS_VERSION
from prectr_torchrec.data.teacher_scores import SCORES_VERSION, fixed_size_lists

MIDDLES = np.array([1.25, 1.835, 2.505, 2.92])
SPLITS = ["train"] * 7 + ["validation"] + ["test"] * 2


def write_pairs(path: Path, queries: int = 120, titles: int = 8, seed: int = 0) -> pa.Table:
    """`titles` pairs of each query, two in three of them graded by the share of the query's words in the title: 1 to 3."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in range(queries):
        words = list(rng.choice(WORDS, 2, replace=False))
        for item in range(titles):
            kept = words[: int(rng.integers(0, 3))]
            title = [*kept, *rng.choice(WORDS, 3)]
            rng.shuffle(title)
            grade = 1.0 + len(set(words) & set(title))
            rows.append((query, query * titles + item, " ".join(words), " ".join(title), grade, SPLITS[query % len(SPLITS)]))
    names = ("query_id", "item_id", "query", "title", "true", "split")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    graded = rng.random(len(rows)) < 2 / 3
    true = np.array(columns.pop("true"), dtype=np.float32)
    columns["relevance"] = pa.array(np.where(graded, true, np.nan), pa.float32(), from_pandas=True)
    columns["source"] = np.where(graded, "graded", "shown").tolist()
    metadata = {"prectr_pairs": PAIRS_VERSION, "levels": Levels().model_dump_json(), "settings": "{}"}
    names = ["query_id", "item_id", "query", "title", "relevance", "source", "split"]
    table = pa.table(columns).select(names).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return table.append_column("true", pa.array(true))


def write_teacher_scores(folder: Path, pairs: pa.Table, hidden: int = 0, files: int = 2) -> Path:
    """Soft grades near the true ones, for four levels."""
    true = pairs["true"].to_numpy()
    logits = -2 * np.abs(MIDDLES - true[:, None])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = pairs.select(["query_id", "item_id"])
    table = table.append_column("probabilities", fixed_size_lists(probabilities.astype(np.float32)))
    if hidden:
        states = np.random.default_rng(0).normal(size=(4, hidden))[np.round(true).astype(int)]
        table = table.append_column("hidden", fixed_size_lists(states.astype(np.float16)))
    folder.mkdir(parents=True)
    names = [f"part-{number:05d}.parquet" for number in range(files)]
    for number, name in enumerate(names):
        pq.write_table(table.take(np.arange(number, len(table), files)), folder / name)
    manifest = {
        "version": SCORES_VERSION,
        "levels": 4,
        "boundaries": Levels().boundaries,
        "level_grades": MIDDLES.tolist(),
        "rows": len(table),
        "files": names,
        "hidden_size": hidden or None,
        "agreement": {"test": {"spearman": 1.0}},
        "settings": {"pairs": "generated"},
    }
    (folder / "teach.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
