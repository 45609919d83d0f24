"""`prectr serve --demo-page`: a page to look at rankings, over the queries, users and items of sample files."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prectr_torchrec.config.score import multiplied, score_text
from prectr_torchrec.data.columns import family_of
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.parquet_files import open_parquet, readable
from prectr_torchrec.serving.ranker import Ranker
from prectr_torchrec.serving.scores import Scores

Row = dict[str, Any]
HTML = Path(__file__).with_name("page.html")
REQUESTS, USERS, CANDIDATES, EVENTS = 5000, 200, 20, 8
"""Sample requests read, users to choose from, candidates ranked, past events shown."""


class DemoPage:
    """What the page can show: each query of the samples with what is known of it, the users with their past, the items.

    A query as the samples have it is ranked with the items that they show under it, any other text with the items whose titles
    share words with it, rare words first. Positions and clicks of the samples are left out.

    Args:
        folder: sample files, such as `prepared/test`; the first 5,000 requests are read.

    Raises:
        FileNotFoundError: there are no sample files.
    """

    def __init__(self, folder: Path) -> None:
        self._users: dict[int, Row] = {}
        self._queries: dict[str, Row] = {}
        self._under: dict[str, dict[int, Row]] = defaultdict(dict)
        self._items: dict[int, Row] = {}
        for row in _read(folder):
            self._users[row["user_id"]] = row
            self._queries[row["query"]] = row
            columns = {name: values for name, values in row.items() if family_of(name) == "candidate"}
            for values in zip(*columns.values(), strict=True):
                item = {**dict(zip(columns, values, strict=True)), "candidate_position": 0, "candidate_click": None}
                self._under[row["query"]][item["candidate_item_id"]] = item
                self._items[item["candidate_item_id"]] = {**item, "candidate_relevance": None, "candidate_predicted": 0}
        ids = LogIds.of_split(folder)
        self.item_names, self._user_names = ids.restore("item_id", self._items), ids.restore("user_id", self._users)
        self._with_word: dict[str, list[int]] = defaultdict(list)
        for number, about in self._items.items():
            for word in set(_words(about["candidate_title"])):
                self._with_word[word].append(number)

    def describe(self, ranker: Ranker) -> Row:
        """What can be chosen: `queries`, the most frequent first, and `users` with a past, the longest first."""
        known = (user for user in self._users if user != 0 and self._users[user]["history_click"])
        users = sorted(known, key=lambda user: -len(self._users[user]["history_click"]))[:USERS]
        score = ranker.config.score
        return {
            "name": ranker.config.name,
            "levels": ranker.config.data.levels.count,
            "score": score_text(score) if len(ranker.model.labels) > 1 or multiplied(score) else None,
            "queries": sorted(self._queries, key=lambda query: -len(self._under[query])),
            "users": [
                {"id": str(user), "name": str(self._user_names[user]), "shown": len(clicks), "clicked": sum(clicks)}
                for user in users
                if (clicks := self._users[user]["history_click"])
            ],
        }

    def samples(self, ranker: Ranker, query: str, user: int) -> pa.Table:
        """Two rows of samples with the same candidates: for the user, and for nobody known."""
        blank = ranker.schema.from_plain([{"query": query, "candidates": []}])
        row = {**blank.to_pylist()[0], **_part(self._queries.get(query, {}), _of_query), **_lists(self._candidates(query))}
        personal = _part(self._users.get(user, {}), _of_user)
        if self._users.get(user, {}).get("query") != query:
            personal["user_query_events"] = 0
        kept = set(blank.column_names)
        rows = [{name: value for name, value in found.items() if name in kept} for found in ({**row, **personal}, row)]
        return pa.Table.from_pylist(rows, schema=blank.schema)

    def past(self, ranker: Ranker, user: int) -> list[Row]:
        """The user's latest events, the latest first."""
        row, levels = self._users.get(user, {}), ranker.config.data.levels
        names = ("history_title", "history_relevance", "history_click")
        events = list(zip(*(row.get(name, []) for name in names), strict=True))[: -EVENTS - 1 : -1]
        graded = grade_levels(np.array([grade for _, grade, _ in events], dtype=np.float32), levels.boundaries).tolist()
        return [
            {"title": title, "level": level, "clicked": bool(click)}
            for (title, _, click), level in zip(events, graded, strict=True)
        ]

    def _candidates(self, query: str) -> list[Row]:
        found = dict(list(self._under.get(query, {}).items())[:CANDIDATES])
        score: dict[int, float] = defaultdict(float)
        for word in set(_words(query)):
            items = self._with_word.get(word, [])
            for item in items:
                score[item] += math.log1p(len(self._items) / len(items))
        for item in sorted(score, key=lambda item: -score[item]):
            if len(found) < CANDIDATES:
                found.setdefault(item, self._items[item])
        return list(found.values())


def render(samples: pa.Table, scores: Sequence[Scores], past: list[Row], names: Mapping[int, Any]) -> Row:
    """What the page shows of `DemoPage.samples`: two lists, best first, items by the names that the log has for their ids.

    Ids are texts: JavaScript has no 64-bit integers.
    """
    personal, plain = (_ranking(samples.slice(i, 1), scores[i], names) for i in range(2))
    taste = (scores[0].explanation or {}).get("taste", {})
    return {"past": past, "personal": personal, "plain": plain, "taste": taste}


def page() -> tuple[str, str]:
    """The page, which needs nothing from elsewhere, and the content security policy that holds it to that."""
    text = HTML.read_text(encoding="utf-8")
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.split(f"<{kind}>")[1].split(f"</{kind}>")[0].encode()).digest()).decode()
        for kind in ("style", "script")
    }
    allowed = " ".join(f"{kind}-src 'sha256-{digest}';" for kind, digest in hashes.items())
    closed = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return text, f"default-src 'none'; {allowed} connect-src 'self'; img-src data:; {closed}"


def _ranking(sample: pa.Table, scores: Scores, names: Mapping[int, Any]) -> list[Row]:
    titles = sample["candidate_title"][0].as_py()
    explanation = scores.explanation or {"candidates": []}
    explained = {row["item_id"]: row for row in explanation["candidates"]}
    relevance, total = scores.relevance_probabilities, scores.score
    rows = []
    for i in scores.ranking().tolist():
        item = int(scores.item_id[i])
        why = explained.get(item, {})
        rows.append(
            {
                "item": str(names[item]),
                "title": titles[i],
                "click": float(scores.click_probability[i]),
                "labels": _labels(scores, i),
                "score": float(total[i]) if scores.ranks_by_worth else None,
                "relevance": relevance[i].tolist() if relevance is not None else None,
                "level": why.get("level"),
                "numbers": why.get("numbers", {}),
                "parts": _signed_parts(why, explanation.get("parts", {})),
            }
        )
    return rows


def _labels(scores: Scores, i: int) -> list[Row]:
    """Of a candidate: each label's probability and what it adds to the score, where there are labels beside the click."""
    if not scores.ranks_by_worth:
        return []
    probabilities = {"click": scores.click_probability, **scores.label_probabilities}
    worths = {name: float(np.broadcast_to(worth, len(scores.item_id))[i]) for name, worth in scores.worths.items()}
    return [{"name": name, "probability": float(p[i]), "worth": worths.get(name, 0.0)} for name, p in probabilities.items()]


def _signed_parts(candidate: Row, parts: Row) -> list[Row]:
    """Of a candidate that was taken apart, what speaks for or against it with one number."""
    return [
        {"name": name.replace("_", " "), "value": candidate[name], "meaning": part["meaning"]}
        for name, part in parts.items()
        if part["signed"] and isinstance(candidate.get(name), float)
    ]


def _read(folder: Path) -> Iterator[Row]:
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no *.parquet file here; name a folder of samples, such as prepared/test")
    left = REQUESTS
    for shard in shards:
        with readable(shard), open_parquet(shard) as file:
            for batch in file.iter_batches(min(left, 1024) or 1):
                yield from batch.slice(0, left).to_pylist()
                left = max(left - batch.num_rows, 0)
                if not left:
                    return


def _of_user(name: str) -> bool:
    return name.startswith("user_") or family_of(name) == "history"


def _of_query(name: str) -> bool:
    return name in ("query_id", "group_id") or name.startswith(("query_", "group_")) or family_of(name) == "peer"


def _part(row: Row, wanted: Any) -> Row:
    return {name: value for name, value in row.items() if wanted(name)}


def _lists(items: list[Row]) -> Row:
    """The items' columns and their number."""
    names = items[0] if items else {}
    return {"num_candidates": len(items), **{name: [item[name] for item in items] for name in names}}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
