"""Small random raw logs, and what each request of one may know, computed the slow and obvious way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.raw.tables import load_tables, open_sources
from prectr_torchrec.data.teacher_scores import MANIFEST, SCORES_VERSION, fixed_size_lists, scores_schema

Row = dict[str, Any]
Raw = dict[str, list[Row]]


def random_log(seed: int = 0, *, requests: int = 120, text_ids: bool = False) -> Raw:
    """Few users, queries, items and moments, so that every tie and every fallback occurs."""
    rng = np.random.default_rng(seed)

    def name(kind: str, number: int) -> Any:
        return f"{kind}{number}" if text_ids else 1000 * len(kind) + number

    items: list[Row] = [
        {"item_id": name("item", i), "title": f"title {i} ä" if i else "", "category_id": i % 3 or None, "brand_id": i % 5}
        for i in range(20)
    ]
    queries: list[Row] = [{"query_id": name("query", q), "query": f"query {q}"} for q in range(6)]
    judgments: list[Row] = [
        {"query_id": q["query_id"], "item_id": i["item_id"], "relevance": float(rng.choice([1.0, 1.5, 2.17, 2.67, 3.0]))}
        for q in queries[:5]
        for i in items
        if rng.random() < 0.5
    ]
    impressions: list[Row] = []
    for r in rng.permutation(requests):
        request = {"request_id": int(r), "timestamp": int(rng.integers(0, 40)), "user_id": name("user", int(rng.integers(4)))}
        request["query_id"] = queries[min(int(rng.geometric(0.4)) - 1, 5)]["query_id"]
        for position, i in enumerate(rng.permutation(20)[: rng.integers(1, 5)], 1):
            impressions.append(
                {**request, "item_id": items[i]["item_id"], "position": position, "click": int(rng.random() < 0.4)}
            )
    return {"impressions": impressions, "items": items, "queries": queries, "judgments": judgments}


def delay_labels(raw: Raw, most: int, seed: int = 0) -> Raw:
    """The log with carts and orders, a few without what they follow, and when each happened, but for a few."""
    rng = np.random.default_rng(seed)
    for event in raw["impressions"]:
        time, before = event["timestamp"], event["click"]
        for label in ("click", "cart", "order"):
            before = event[label] = before if label == "click" else int(rng.random() < (0.5 if before else 0.03))
            time += int(rng.integers(0, most + 1))
            event[f"{label}_time"] = time if before and rng.random() < 0.9 else None
    return raw


def write_log(raw: Raw, folder: Path, *, suffix: str = "parquet") -> Path:
    """Writes each table to `<name>.<suffix>`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in raw.items():
        write_table(rows, folder / f"{name}.{suffix}")
    return folder


def write_table(rows: list[Row], path: Path) -> None:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)


def read_split(folder: Path, split: str) -> list[Row]:
    """The rows of a split in order."""
    return [row for path in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


Predicted = dict[tuple[Any, Any], list[int]]
"""Query and item id -> probabilities of the levels in units of 1/128."""


def random_predictions(raw: Raw, data: DataConfig, seed: int = 0) -> Predicted:
    """Of most pairs, graded or not."""
    rng = np.random.default_rng(seed)
    pairs = [(q["query_id"], i["item_id"]) for q in raw["queries"] for i in raw["items"] if rng.random() < 0.7]
    return {pair: rng.multinomial(128, np.ones(data.levels.count) / data.levels.count).tolist() for pair in pairs}


def write_scores(predicted: Predicted, data: DataConfig, folder: Path, *, parts: int = 2) -> Path:
    """A folder as `prectr teach` leaves it."""
    folder.mkdir(parents=True)
    ids = np.array([[as_id(query), as_id(item)] for query, item in predicted], np.int64).reshape(-1, 2)
    shares = np.array(list(predicted.values()), np.float32).reshape(-1, data.levels.count) / 128
    names = [f"part-{number:05d}.parquet" for number in range(parts)]
    for number, name in enumerate(names):
        columns = [*ids[number::parts].T, fixed_size_lists(shares[number::parts])]
        table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=scores_schema(data.levels.count, None))
        pq.write_table(table, folder / name)
    manifest = {
        "version": SCORES_VERSION,
        "boundaries": data.levels.boundaries,
        "level_grades": data.levels.grades,
        "rows": len(ids),
        "files": names,
        "hidden_size": None,
        "agreement": {},
        "settings": {"pairs": "generated"},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def reference_rows(raw: Raw, data: DataConfig, predicted: Predicted | None = None) -> list[Row]:
    """All requests of the log as samples, in order of time and request, by a loop over every pair of request and event."""
    items = {row["item_id"]: row for row in sorted(raw["items"], key=lambda row: row.get(data.valid_from or "", 0))}
    queries = {row["query_id"]: row["query"] for row in raw["queries"]}
    grades: dict[Any, Any] = dict(predicted or {})  # a list of units where predicted, a grade where judged
    grades |= {(row["query_id"], row["item_id"]): row["relevance"] for row in raw["judgments"]}
    groups = {query: _group(query, raw["judgments"], items) for query in queries}
    ordered = sorted(raw["impressions"], key=lambda e: (e["timestamp"], e["request_id"], e["position"]))
    if data.valid_from:
        ordered = [event | {"item": _row_then(event, raw["items"], data.valid_from)} for event in ordered]
    requests: dict[Any, list[Row]] = {}
    for event in ordered:
        requests.setdefault(event["request_id"], []).append(event)
    return [_reference_row(shown, ordered, items, queries, grades, groups, data) for shown in requests.values()]


def _row_then(event: Row, items: list[Row], valid_from: str) -> Row:
    """The row of the event's item that held then, or its first."""
    rows = sorted((row for row in items if row["item_id"] == event["item_id"]), key=lambda row: row[valid_from])
    return max((row for row in rows if row[valid_from] <= event["timestamp"]), key=lambda row: row[valid_from], default=rows[0])


def _reference_row(shown: list[Row], log: list[Row], items: Any, queries: Any, grades: Any, groups: Any, data: DataConfig) -> Row:
    first = shown[0]
    time, user, query, group = first["timestamp"], first["user_id"], first["query_id"], groups[first["query_id"]]
    past = [e for e in log if e["timestamp"] < time]
    train = [e for e in log if e["timestamp"] < data.split.validation_from]  # type: ignore[operator]
    own = [e for e in past if user and e["user_id"] == user]
    others = [e for e in past if not user or e["user_id"] != user]
    under_query = [e for e in others if e["query_id"] == query]
    history = _of_kind(data.history_events, own, time, data)
    peers, fill = _peer_events(_of_kind(data.peer_events, others, time, data), query, group, groups, data)
    row: Row = {
        "request_id": first["request_id"],
        "timestamp": time,
        "user_id": as_id(user),
        "query_id": as_id(query),
        "group_id": group,
        "query": queries[query],
        "num_candidates": len(shown),
        "user_events": len(own),
        "user_query_events": sum(e["query_id"] == query for e in own),
        "query_events": len(under_query),
    }
    row |= {
        "user_trained": sum(user == e["user_id"] for e in train) if user else 0,
        "query_trained": sum(query == e["query_id"] for e in train),
        "group_trained": sum(group == groups[e["query_id"]] for e in train) if group else 0,
        "candidate_item_trained": [sum(s["item_id"] == e["item_id"] for e in train) for s in shown],
    }
    for name in data.item_attributes:
        values = [(e.get("item") or items[e["item_id"]])[name] or 0 for e in train]
        own_values = [(e.get("item") or items[e["item_id"]])[name] or 0 for e in shown]
        row[f"candidate_{name}_trained"] = [values.count(value) if value else 0 for value in own_values]
    in_group = [e for e in others if group and groups[e["query_id"]] == group]
    for who, events in (("user", own), ("query", under_query), ("group", in_group)):
        row[f"{who}_shown"] = _by_level(events, grades, data, [1.0])
        row[f"{who}_clicked"] = _by_level(_happened(events, time, data), grades, data, [1.0])
        for label in data.further_labels:
            row[f"{who}_{label}s"] = _by_level(_happened(events, time, data, label), grades, data, [1.0])
        row[f"{who}_examined"] = _by_level(events, grades, data, data.examination or [1.0])
    history, peers, fill = ([_as_known(e, time, data) for e in events] for events in (history, peers, fill))
    history = history[max(len(history) - data.history_length, 0) :]
    row |= _event_columns("history", history, time, items, grades, data)
    row["history_title"] = [(e.get("item") or items[e["item_id"]])["title"] for e in history]
    row |= _event_columns("peer", fill + peers, time, items, grades, data)
    row["peer_in_group"] = [1] * len(fill) + [0] * len(peers)
    candidates = _event_columns("candidate", shown, time, items, grades, data)
    del candidates["candidate_age"], candidates["candidate_query_id"]
    row |= candidates
    row["candidate_title"] = [(e.get("item") or items[e["item_id"]])["title"] for e in shown]
    row["candidate_shown"] = [float(sum(p["item_id"] == e["item_id"] for p in past)) for e in shown]
    counted = {"clicked": "click"} | {f"{label}s": label for label in data.further_labels}
    for name, label in counted.items():
        happened = [p["item_id"] for p in _happened(past, time, data, label)]
        row[f"candidate_{name}"] = [float(happened.count(e["item_id"])) for e in shown]
    for label in ("click", *data.further_labels):
        row[f"candidate_{label}"] = [1 if known_from(e, data, label) < math.inf else e[label] for e in shown]
    row["candidate_examined"] = [
        sum(_examination(p["position"], data.examination or [1.0]) for p in past if p["item_id"] == e["item_id"]) for e in shown
    ]
    return row | _click_known(shown, data)


def _click_known(shown: list[Row], data: DataConfig) -> Row:
    if not data.late:
        return {}
    return {"candidate_known_click": [int(known) if (known := known_from(e, data)) < math.inf else 0 for e in shown]}


def known_from(event: Row, data: DataConfig, label: str = "click") -> float:
    """From when on it is known that this happened; infinite: it did not."""
    column = data.labels[label].time if label in data.labels else None
    own = (event[column] if column else None) or event["timestamp"] + data.feedback_delay
    followers = [name for name, other in data.further_labels.items() if other.after == label]
    return min([own if event[label] else math.inf, *(known_from(event, data, name) for name in followers)])


def _of_kind(kind: str, events: list[Row], time: int, data: DataConfig) -> list[Row]:
    """Those that are shown, clicked or of a label."""
    return events if kind == "shown" else _happened(events, time, data, {"clicked": "click"}.get(kind, kind))


def _peer_events(others: list[Row], query: Any, group: Any, groups: Any, data: DataConfig) -> tuple[list[Row], list[Row]]:
    """Those under the query, and of its group where they are few."""
    under_query = [e for e in others if e["query_id"] == query]
    peers = under_query[max(len(under_query) - data.peer_length, 0) :]
    if len(under_query) >= data.peer_minimum or not group:
        return peers, []
    fill = [e for e in others if e["query_id"] != query and groups[e["query_id"]] == group]
    return peers, fill[max(len(fill) - (data.peer_length - len(peers)), 0) :]


def _happened(events: list[Row], time: int, data: DataConfig, label: str = "click") -> list[Row]:
    """Those that are known to have happened before a moment, in the order in which this became known."""
    return sorted([e for e in events if known_from(e, data, label) < time], key=lambda e: known_from(e, data, label))


def _as_known(event: Row, time: int, data: DataConfig) -> Row:
    return event | {"click": int(known_from(event, data) < time)}


def _event_columns(prefix: str, events: list[Row], time: int, items: Any, grades: Any, data: DataConfig) -> Row:
    columns = {
        "item_id": [as_id(e["item_id"]) for e in events],
        "query_id": [as_id(e["query_id"]) for e in events],
        **{a: [(e.get("item") or items[e["item_id"]])[a] or 0 for e in events] for a in _kept(prefix, data)},
        "relevance": [_float32(grades.get((e["query_id"], e["item_id"]))) for e in events],
        "predicted": [_packed(grades.get((e["query_id"], e["item_id"]))) for e in events],
        "position": [e["position"] for e in events],
        "click": [e["click"] for e in events],
        "age": [time - e["timestamp"] for e in events],
    }
    return {f"{prefix}_{name}": values for name, values in columns.items()}


def _kept(prefix: str, data: DataConfig) -> list[str]:
    """Attributes that candidates or the events of a sequence have."""
    kept = {"history": data.history_columns, "peer": data.peer_columns}.get(prefix)
    return [name for name in data.item_attributes if kept is None or name in kept]


def as_id(value: Any) -> int:
    return hash_id(value) if isinstance(value, str) else value or 0


def _float32(grade: Any) -> float | None:
    return float(np.float32(grade)) if isinstance(grade, float) else None


def _packed(grade: Any) -> int:
    return int.from_bytes(grade, "little") if isinstance(grade, list) else 0


def _examination(position: int, examination: list[float]) -> float:
    return examination[min(position, len(examination)) - 1] if position else 1.0


def _by_level(events: list[Row], grades: Any, data: DataConfig, examination: list[float]) -> list[float]:
    counts = [0.0] * (data.levels.count + 1)
    for e in events:
        grade, weight = grades.get((e["query_id"], e["item_id"])), _examination(e["position"], examination)
        if isinstance(grade, list):
            for level, units in enumerate(grade, 1):
                counts[level] += weight * units / 128
        else:
            counts[0 if grade is None else 1 + sum(grade > bound for bound in data.levels.boundaries)] += weight
    return counts


def _group(query: Any, judgments: list[Row], items: Any) -> int:
    counts: dict[int, int] = {}
    for row in judgments:
        category = items[row["item_id"]]["category_id"]
        if row["query_id"] == query and category:
            counts[category] = counts.get(category, 0) + 1
    return min(counts, key=lambda c: (-counts[c], c)) if counts else 0


def small_log() -> Raw:
    return random_log(requests=12)


def load(folder: Path, **settings: Any) -> tuple[duckdb.DuckDBPyConnection, dict[str, Any]]:
    """The tables of a log and the report on it."""
    con = duckdb.connect()
    data = DataConfig(**settings)
    return con, load_tables(con, data, open_sources(con, data, folder))


def recast(file: Path, column: str, convert: Callable[[pa.ChunkedArray], Any]) -> None:
    """Writes a Parquet file anew with another column."""
    table = pq.read_table(file, partitioning=None)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, convert(table[column])), file)
