"""The part of the report on what the other rankers differ by from the first one, on the same candidates."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from prectr_torchrec.evaluation.intervals import compare_runs
from prectr_torchrec.evaluation.report_html import number, table

Metrics = dict[str, Any]
COLUMNS = {
    "auc": "AUC",
    "gauc_request": "GAUC by request",
    "ndcg@3": "NDCG@3",
    "ndcg@10": "NDCG@10",
    "normalized_entropy": "Normalised entropy",
}
NOTE = (
    "Differences from {first} on the same logged candidates, with 95 % intervals: both are measured on the same resampled "
    "requests, so that what makes a request easy or hard does not count. An interval without 0 is a difference; of the entropy "
    "less is better."
)


def paired_section(measured: dict[str, Metrics], runs: dict[str, Path]) -> str:
    """Of two runs or more whose predictions of the first one's split are still there and of the same candidates."""
    (first, found), *others = measured.items()
    file = f"predictions-{found['split']}.parquet"
    rows: dict[str, Metrics] = {}
    left: list[str] = []
    for name, _ in others:
        if not all((runs[run] / file).is_file() for run in (first, name)):
            left.append(f"{name}: {file} is not there")
            continue
        try:
            compared = compare_runs(runs[name] / file, runs[first] / file)
        except ValueError as error:
            left.append(f"{name}: {error}")
            continue
        rows |= {f"{name}, {label}s": differences for label, differences in compared.items()}
    if not others:
        return ""
    body = [[(difference(differences[column]), False) for column in COLUMNS] for differences in rows.values()]
    shown = table(["Ranker, label", *COLUMNS.values()], list(rows), body) if rows else ""
    note = NOTE.format(first=html.escape(first)) + "".join(f" Not compared: {html.escape(why)}." for why in left)
    return f"<section><h2>Against the first ranker</h2>{shown}<p class=note>{note}</p></section>"


def difference(found: Metrics) -> str:
    """With its interval."""
    if found["interval"] is None:
        return number(None)
    low, high = found["interval"]
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
