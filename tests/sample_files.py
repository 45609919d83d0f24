"""Small generated sample files and a small tokenizer, for the tests of everything after `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.column_kinds import Id, Text, Vector
from prectr_torchrec.data.columns import CLICK_KNOWN, Column, declared_columns
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, item_vectors
from prectr_torchrec.data.levels import pack_levels
from prectr_torchrec.data.list_kinds import Bags, Ids, Weights
from prectr_torchrec.data.schema import TOKENIZER, VERSION_KEY, sample_schema
from prectr_torchrec.data.tokenizer import write_document_frequency

WORDS = [a + b for a in "red oak wall sink lamp door tile pump".split() for b in ("", "er", "set", "kit", "top", "max")]


def write_samples(
    folder: Path,
    data_config: DataConfig,
    *,
    requests: int = 200,
    seed: int = 0,
    split: str = "train",
    files: int = 2,
    max_candidates: int = 9,
    items: int = 300,
    queries: int = 60,
    users: int = 40,
    predicted: bool = False,
) -> pa.Table:
    """Writes `folder/split/part-*.parquet` and, beside them, the tokenizer; returns the rows in file order.

    Requests have 1 to `max_candidates` candidates, one in five users has no history, one in six grades is missing, and
    clicks depend on grade and position. `judgments` rows have no user, no history and no clicks; `candidates` no labels. With
    `predicted`, most events and candidates without a grade have a predicted level.
    """
    rng = np.random.default_rng((seed, requests))
    table = _rows(rng, data_config, requests, split, max_candidates, items, queries, users)
    if predicted:
        table = _with_predictions(table, data_config)
    where = Path(folder) / split
    where.mkdir(parents=True, exist_ok=True)
    per_file = -(-requests // files)
    for number in range(files):
        part = table.slice(number * per_file, per_file)
        pq.write_table(
            part, where / f"part-{number:05d}.parquet", row_group_size=data_config.requests_per_row_group, compression="zstd"
        )
    write_tokenizer(Path(folder) / TOKENIZER)
    if item_vectors(data_config):
        write_item_vectors(Path(folder) / ITEM_VECTORS, data_config, items)
    return table


def write_item_vectors(folder: Path, data: DataConfig, items: int) -> None:
    """Vectors of all but every seventh item, of which one in five has none."""
    known = np.array([item for item in range(items) if item % 7])
    rng = np.random.default_rng(items)
    folder.mkdir(parents=True, exist_ok=True)
    (known * 15485863 + 1).astype(np.int64).tofile(folder / "item_id.int64")
    for column, settings in item_vectors(data):
        values = rng.gamma(2.0, 0.5, (len(known), settings.width)).astype(settings.dtype)
        values[rng.random(len(known)) < 0.2] = np.nan
        values.tofile(folder / f"{column.key}.{settings.dtype}x{settings.width}")


def write_tokenizer(folder: Path) -> Path:
    """A WordPiece tokenizer over `WORDS` in Hugging Face layout: [PAD] is 0, [CLS] comes first, no [SEP]."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789", *(f"##{d}" for d in "0123456789")]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)])
    tokenizer.add_special_tokens(pieces[:5])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}), encoding="utf-8"
    )
    return folder


def write_counted_tokenizer(folder: Path) -> Path:
    """`write_tokenizer`, with the document frequencies that match features need."""
    write_tokenizer(folder)
    write_document_frequency(["red oaker", "red lamp"], folder)
    return folder


def _rows(
    rng: np.random.Generator,
    data: DataConfig,
    requests: int,
    split: str,
    max_candidates: int,
    items: int,
    queries: int,
    users: int,
) -> pa.Table:
    levels, graded_pairs = data.levels.count + 1, split == "judgments"
    titles = np.array([" ".join(rng.choice(WORDS, rng.integers(2, 9))) + f" {i}" for i in range(items)])
    texts = np.array([" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(queries)])
    query = rng.zipf(1.5, requests) % queries
    num_candidates = rng.integers(1, max_candidates + 1, requests)
    user = np.zeros(requests, dtype=np.int64) if graded_pairs else rng.integers(0, users, requests)
    columns: dict[str, object] = {
        "request_id": rng.permutation(requests) + 10**12,
        "timestamp": 1_700_000_000 + np.sort(rng.integers(0, 10**6, requests)),
        "user_id": user if graded_pairs else user * 7919 + 1,
        "query_id": query * 104729 + 1,
        "group_id": query % 7,
        "query": texts[query],
        "num_candidates": num_candidates,
    }
    columns |= {f"user_{a.removeprefix('user_')}": user % 5 for a in data.user_attributes}
    for name in ("user_events", "user_query_events", "query_events"):
        columns[name] = np.where(graded_pairs, 0, rng.poisson(5, requests))
    for who in ("user", "query", "group"):
        columns[f"{who}_trained"] = np.where(graded_pairs, 0, rng.poisson(20, requests))
        shown = rng.poisson(3, (requests, levels)) * (not graded_pairs)
        columns[f"{who}_shown"] = list(shown.astype(np.float32))
        columns[f"{who}_clicked"] = list((shown // 2).astype(np.float32))
        columns[f"{who}_examined"] = list((shown * 0.75).astype(np.float32))
        columns |= {f"{who}_{name}s": list((shown // 3).astype(np.float32)) for name in data.further_labels}
    for prefix, length in (("history", data.history_length), ("peer", data.peer_length)):
        counts = rng.integers(0, length + 1, requests) * ((user % 5 > 0) & (not graded_pairs))
        events = _events(rng, prefix, data, int(counts.sum()), titles, queries)
        columns |= {name: _lists(values, counts) for name, values in events.items()}
    candidates = _candidates(rng, data, split, num_candidates, titles)
    columns |= {name: _lists(values, num_candidates) for name, values in candidates.items()}
    if data.late:
        clicked, shown = np.asarray(candidates["candidate_click"]) == 1, np.repeat(columns["timestamp"], num_candidates)
        late = shown + data.feedback_delay + np.arange(len(shown)) % 7 * 50_000
        columns[f"candidate_{CLICK_KNOWN}"] = _lists(np.where(clicked, late, 0), num_candidates)
    for column in declared_columns(data):
        if column.name in columns or column.gathered:  # an attribute, or in a file of its own
            continue
        values = _declared(int(num_candidates.sum()) if column.listed else requests, column)
        columns[column.name] = _lists(values, num_candidates) if column.listed else values
    schema = sample_schema(data)
    arrays = [pa.array(columns[f.name]) if isinstance(columns[f.name], np.ndarray) else columns[f.name] for f in schema]
    arrays = [a.cast(f.type) if isinstance(a, pa.Array) else pa.array(a, f.type) for a, f in zip(arrays, schema, strict=True)]
    assert schema.metadata and VERSION_KEY in schema.metadata
    return pa.Table.from_arrays(arrays, schema=schema)


def _declared(count: int, column: Column) -> pa.Array:
    """Numbers around 1, or vectors or lists of weights of such, one number or vector in five missing; ids of 30."""
    rng = np.random.default_rng([count, *column.name.encode()])
    lengths = np.random.default_rng(count).integers(0, 4, count)  # alike for ids and their weights
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if isinstance(column.kind, Weights):
        return column.kind.to_arrow(Bags(rng.gamma(2.0, 0.5, offsets[-1]) * (rng.random(offsets[-1]) < 0.8), offsets))
    if isinstance(column.kind, Ids):
        return column.kind.to_arrow(Bags(rng.integers(0, 30, offsets[-1]), offsets))
    if isinstance(column.kind, Text):
        words = rng.choice(WORDS, (count, 3))
        return column.kind.to_arrow(pa.array([" ".join(row[: rng.integers(0, 4)]) for row in words], pa.string()))
    if isinstance(column.kind, Id):
        return column.kind.to_arrow(rng.integers(0, 30, count))
    missing = rng.random(count) < 0.2
    shape = (count, column.kind.width) if isinstance(column.kind, Vector) else (count,)
    values = rng.gamma(2.0, 0.5, shape).astype(np.float32)
    values[missing] = np.nan
    return column.kind.to_arrow(values)


def _candidates(
    rng: np.random.Generator, data: DataConfig, split: str, num_candidates: np.ndarray, titles: np.ndarray
) -> dict[str, object]:
    total = int(num_candidates.sum())
    grade = rng.choice([1.0, 1.67, 2.33, 3.0, np.nan], total, p=[0.2, 0.2, 0.2, 0.24, 0.16])
    position = np.arange(total) - np.repeat(np.cumsum(num_candidates) - num_candidates, num_candidates) + 1
    first = np.repeat(rng.zipf(1.3, len(num_candidates)), num_candidates)
    item = (first + 13 * position) % len(titles)  # no item twice in a request
    chance = np.nan_to_num(grade, nan=2.0) / 4 / np.sqrt(position)
    nothing = pa.nulls(total, pa.int8())
    shown = split not in ("judgments", "candidates")
    click = rng.random(total) < chance if shown else None
    return {
        "candidate_item_id": item * 15485863 + 1,
        "candidate_title": titles[item],
        **{f"candidate_{a}": item % (11 + i) for i, a in enumerate(data.item_attributes)},
        "candidate_position": np.where(split == "judgments", 0, position),
        "candidate_click": nothing if click is None else pa.array(click).cast(pa.int8()),
        **{f"candidate_{name}": nothing if click is None else values for name, values in _labels(data, click, item).items()},
        "candidate_relevance": pa.array(grade, from_pandas=True) if split != "candidates" else pa.nulls(total, pa.float32()),
        "candidate_predicted": np.zeros(total, np.int64),
        "candidate_shown": rng.poisson(4, total),
        "candidate_clicked": rng.poisson(1, total),
        "candidate_examined": rng.poisson(4, total) * 0.75,
        "candidate_item_trained": rng.poisson(4, total),
        **{f"candidate_{name}_trained": rng.poisson(40, total) for name in data.ids_of("items")},
        **{f"candidate_{name}s": item % 2 for name in data.further_labels},
        **({"candidate_sample_weight": rng.gamma(2.0, 0.5, total)} if data.weighted else {}),
    }


def _labels(data: DataConfig, click: np.ndarray | None, item: np.ndarray) -> dict[str, pa.Array]:
    """Labels that follow the click or one another, more often of some items than of others; one in ten is not known."""
    rng, found = np.random.default_rng(len(item)), {"click": np.zeros(len(item), bool) if click is None else click}
    while len(found) <= len(data.further_labels):
        for name, label in data.further_labels.items():
            if name not in found and label.after in found:
                found[name] = found[label.after] & (rng.random(len(item)) < 0.2 + 0.6 * (item % 2))
    unknown = {name: rng.random(len(item)) < 0.1 for name in data.further_labels}
    return {name: pa.array(found[name], mask=unknown[name]).cast(pa.int8()) for name in data.further_labels}


def _events(
    rng: np.random.Generator,
    prefix: str,
    data: DataConfig,
    total: int,
    titles: np.ndarray,
    queries: int,
) -> dict[str, object]:
    item = rng.zipf(1.3, total) % len(titles)
    events: dict[str, object] = {
        f"{prefix}_item_id": item * 15485863 + 1,
        f"{prefix}_query_id": rng.zipf(1.5, total) % queries * 104729 + 1,
        **{f"{prefix}_{a}": item % (11 + i) for i, a in enumerate(data.item_attributes)},
        f"{prefix}_relevance": pa.array(rng.choice([1.0, 1.67, 2.33, 3.0, np.nan], total), from_pandas=True),
        f"{prefix}_predicted": np.zeros(total, np.int64),
        f"{prefix}_position": rng.integers(0, 10, total),
        f"{prefix}_click": rng.integers(0, 2, total),
        f"{prefix}_age": rng.integers(1, 10**6, total),
    }
    if prefix == "peer":
        events["peer_in_group"] = rng.integers(0, 2, total)
    else:
        events["history_title"] = titles[item]
    return events


def _with_predictions(table: pa.Table, data: DataConfig) -> pa.Table:
    rng, K = np.random.default_rng(1), data.levels.count
    for family in ("history", "peer", "candidate"):
        grades = table[f"{family}_relevance"].combine_chunks()
        total = len(grades.values)
        packed = pack_levels(rng.dirichlet(np.ones(K), total) * (rng.random((total, 1)) < 0.8))
        packed[grades.values.is_valid().to_numpy(zero_copy_only=False)] = 0
        column = pa.ListArray.from_arrays(grades.offsets, pa.array(packed))
        table = table.set_column(table.schema.get_field_index(f"{family}_predicted"), f"{family}_predicted", column)
    return table.cast(sample_schema(data, predicted=True))


def _lists(values: object, counts: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values if isinstance(values, pa.Array) else pa.array(values))
