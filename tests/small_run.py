"""A small run over generated samples: tables of every sharding type and several widths, bags of requests and of candidates, all
parts of the model on, a step in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sample_files import WORDS, write_samples

from prectr_torchrec.config.columns import NumberColumn, VectorColumn
from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.schema import MANIFEST, SAMPLE_VERSION, TOKENIZER, sample_settings
from prectr_torchrec.data.tokenizer import write_document_frequency

ENCODER = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


FEATURES = {
    "user_id": {"table": "user"},
    "query_id": {"table": "query"},
    "history_query_id": {"table": "query", "sequence": "history"},
    "candidate_item_id": {"table": "item", "sequence": "candidate"},
    "history_item_id": {"table": "item", "sequence": "history"},
    "peer_item_id": {"table": "item", "sequence": "peer"},
    "candidate_brand_id": {"table": "brand"},
    "candidate_title_tokens": {"table": "title_token"},
    "device": {"table": "device"},
    "query_kind": {"table": "kind"},
    "user_interests": {"table": "interest", "pooling": "mean"},
    "candidate_tags": {"table": "tag", "pooling": "mean"},
    "candidate_badges": {"table": "badge"},
    "candidate_engine": {"table": "engine"},
    "history_brands": {"table": "past_brand", "column": "history_brand_id", "pooling": "mean"},
}


COLUMNS = {
    "users": {"age": "number", "joined": "time", "profile": {"vector": 3}, "interests": "ids"},
    "queries": {"length": "number", "intent": {"vector": 2}, "kind": "id"},
    "requests": {"hour": "number", "context": {"vector": 5}, "device": "id"},
    "items": {
        "price": {"number": {"transform": "log1p", "bins": 4}},
        "listed": {"time": {"transform": "log1p"}},
        "tags": {"ids": {"separator": "|", "weights": "tag_scores"}},
    },
    "impressions": {"bm25": {"number": {"transform": "signed_log"}}, "view": {"vector": 3}, "badges": "ids", "engine": "id"},
}
"""Columns of the log's own, of each kind wherever there may be one."""
DECLARED = ("device", "query_kind", "user_interests", "candidate_tags", "candidate_badges", "candidate_engine")
"""Features of these: where a test declares no columns, they and their tables are not there."""


def small_config(sharding: str | None = None, **sections: Any) -> RunConfig:
    """All parts of PRECTR in small. `sharding`: the type of every table; None: one type each."""
    kinds = [sharding] * 3 if sharding else ["row_wise", "table_wise", "column_wise"]
    table = {"rows": 101, "dim": 8, "shard_columns": 4}  # the same state on any number of ranks
    tree: dict[str, Any] = {
        "name": "small",
        "data": {"history_length": 6, "peer_length": 4, "requests_per_row_group": 16, "columns": COLUMNS},
        "text": {
            "query_tokens": 5,
            "title_tokens": 8,
            "encoder": ENCODER,
        },
        "batch": {"requests": 8, "candidates": 64, "shuffle_row_groups": 2},
        "tables": {
            "item": {**table, "sharding": [kinds[0]]},
            "user": {**table, "dim": 4, "sharding": [kinds[1]]},
            "query": {**table, "sharding": [kinds[2]]},
            "title_token": {**table, "sharding": [kinds[0]]},
            "brand": {**table, "sharding": [kinds[2]]},
            "past_brand": {**table, "dim": 12, "sharding": [kinds[0]]},
            "device": {**table, "dim": 4, "sharding": [kinds[1]]},
            "kind": {**table, "dim": 4, "sharding": [kinds[1]]},
            "interest": {**table, "dim": 4, "sharding": [kinds[0]]},
            "tag": {**table, "sharding": [kinds[0]]},
            "badge": {**table, "sharding": [kinds[1]]},
            "engine": {**table, "sharding": [kinds[1]]},
        },
        "features": FEATURES,
        "model": {
            "relevance_tower": [16],
            "click_tower": [16],
            "dropout": 0.0,
            "parts": {
                "interest": {"dim": 8},
                "statistics": {"whose": ["user", "query", "group", "item"]},
                "taste": {"dim": 8},
                "personal": {"dim": 8},
                "numbers": {},
                "vectors": {"dim": 4},
            },
        },
        "losses": {"random_negatives": {"weight": 0.1}},
        "train": {
            "log_every": 5,
            "reference_requests": None,
            "checkpoint_every": 7,
            "stages": [
                {"split": "judgments", "epochs": 1, "lr": 0.003, "warmup_steps": 2},
                {"split": "train", "epochs": 2, "lr": 0.003, "warmup_steps": 2, "reset_tables": True},
            ],
        },
    }
    for section, values in sections.items():
        given = values if "kind" in values else {**tree.get(section, {}), **values}  # another kind, other keys
        if "kind" not in values and "parts" in values and "parts" in tree.get(section, {}):
            given["parts"] = {**tree[section]["parts"], **values["parts"]}
        tree[section] = given
    if not tree["data"]["columns"]:
        _drop_declared(tree)
    return validate_config(tree, "small_config")


def _drop_declared(tree: dict[str, Any]) -> None:
    tree["features"] = {name: feature for name, feature in tree["features"].items() if name not in DECLARED}
    used = {feature["table"] for feature in tree["features"].values()}
    tree["tables"] = {name: table for name, table in tree["tables"].items() if name in used}


LABELS: dict[str, Any] = {"cart": {}, "order": {"after": "cart"}}
"""For `data.labels`."""
OF_EVERY_KIND: dict[str, Any] = {
    "data": {
        "columns": {
            **COLUMNS,
            "items": {
                **COLUMNS["items"],
                "shelf": "path",
                "details": {"text": {"tokens": 6}},
                "image": {"vector": {"width": 6, "dtype": "float16", "history": True}},
            },
        },
        "labels": LABELS,
        "weight": "importance",
    },
    "tables": {"shelf": {"rows": 101, "dim": 8, "shard_columns": 4, "sharding": ["column_wise"]}},
    "features": {**FEATURES, "candidate_shelf": {"table": "shelf", "pooling": "mean"}},
    "model": {
        "parts": {
            "vector_taste": {"dim": 4, "whose": ["own", "peers"]},
            "further_match": {},
            "further_encodings": {"dim": 4},
        }
    },
}
"""Sections of `small_config` with what `COLUMNS` lack: vectors of items, paths, texts, labels and sample weights."""
_EFFECT = {"rows": 101, "dim": 4, "optimizer": "adagrad"}
MIXED: dict[str, Any] = {
    "model": {"kind": "mixed", "dropout": 0.0, "parts": {"numbers": {}, "vectors": {"dim": 2}}},
    "tables": {
        "user_effect": {**_EFFECT, "dim": 32, "sharding": ["row_wise"]},
        "query_effect": {**_EFFECT, "sharding": ["table_wise"]},
        "group_effect": {**_EFFECT, "sharding": ["table_wise"]},
        "item_effect": {**_EFFECT, "sharding": ["row_wise"]},
        "brand_taste": {**_EFFECT, "dim": 16, "sharding": ["table_wise"]},
        "tag_worth": {**_EFFECT, "sharding": ["table_wise"]},
    },
    "features": {
        "user_effect": {"table": "user_effect", "column": "user_id"},
        "query_effect": {"table": "query_effect", "column": "query_id"},
        "group_effect": {"table": "group_effect", "column": "group_id"},
        "candidate_item_effect": {"table": "item_effect", "column": "candidate_item_id"},
        "candidate_brand_id_taste": {"table": "brand_taste", "column": "candidate_brand_id"},
        "candidate_tag_worth": {"table": "tag_worth", "column": "candidate_tags", "pooling": "mean"},
    },
    "losses": {"random_negatives": {"weight": 0.0}},
}
"""Sections of `small_config` for mixed effects, those of declared numbers, vectors and tags among them."""


def write_small_data(folder: Path, config: RunConfig, requests: int = 160) -> Path:
    """Prepared samples for `small_config`: train, validation, test and judgments, with a tokenizer."""
    for number, (split, count) in enumerate({"train": requests, "validation": 40, "test": 40, "judgments": 40}.items()):
        write_samples(folder, config.data, requests=count, seed=number, split=split)
    write_document_frequency(WORDS, folder / TOKENIZER)
    write_small_manifest(folder, config)
    return folder


def small_numbers(config: RunConfig) -> dict[str, Any]:
    """What `prepare` would have learned of numbers and vectors."""
    numbers = {column.name: {"edges": [0.1, 0.5, 1.0, 2.0]} for column, _ in declared_of(config.data, NumberColumn)}
    vectors = declared_of(config.data, VectorColumn)
    return numbers | {column.name: {"mean": [1.0] * v.width, "deviation": [0.7] * v.width} for column, v in vectors}


def write_small_manifest(folder: Path, config: RunConfig) -> None:
    settings = {"data": sample_settings(config.data)}
    manifest = {
        "version": SAMPLE_VERSION,
        "digest": "small",
        "max_candidates": 9,
        "examination": [1.0, 0.6, 0.4],
        "id_kinds": {},
        "numbers": small_numbers(config),
        "splits": {"train": {"candidates": 40}},
        "settings": settings,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
