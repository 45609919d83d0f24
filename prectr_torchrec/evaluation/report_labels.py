"""The part of the report on labels beside the click, and on what they are worth."""

from __future__ import annotations

from typing import Any

from prectr_torchrec.config.score import read_score, score_text
from prectr_torchrec.evaluation.report_html import number, table

Metrics = dict[str, Any]
COLUMNS = {
    "rows": "Rows",
    "positives": "Positives",
    "auc": "AUC",
    "gauc_request": "GAUC by request",
    "ndcg@10": "NDCG@10",
    "normalized_entropy": "Normalised entropy",
    "calibration": "Predicted / observed",
}
ORDERS = {"score": "By the score", "click_probability": "By click probability", "best": "At best"}
NOTE = (
    "Each label over all candidates of which it is known. AUC and GAUC are of its own probability at the reference position, "
    "NDCG of the final ranking, entropy and calibration at the logged position."
)
VALUE = (
    "Share of what the labels were worth that stands among the first places of its request: ranked by the score, by the click "
    "probability alone, and at best."
)


def labels_section(measured: dict[str, Metrics]) -> str:
    """Of the runs that predict labels beside the click; empty where none does. Runs of an earlier release have none."""
    rows = {f"{name}, {label}": found for name, run in measured.items() for label, found in run.get("labels", {}).items()}
    if not rows:
        return ""
    body = [[(number(found[column]), False) for column in COLUMNS] for found in rows.values()]
    return (
        f"<section><h2>Labels</h2>{table(['Label', *COLUMNS.values()], list(rows), body)}<p class=note>{NOTE}</p>"
        f"{_value(measured)}</section>"
    )


def _value(measured: dict[str, Metrics]) -> str:
    rows = {
        f"{name}, {share.removeprefix('captured@')} places, {score_text(read_score(run['value']['worth']))}": found
        for name, run in measured.items()
        for share, found in run.get("value", {}).items()
        if share != "worth"
    }
    if not rows:
        return ""
    body = [[(number(found[order]), False) for order in ORDERS] for found in rows.values()]
    return f"{table(['Value captured', *ORDERS.values()], list(rows), body)}<p class=note>{VALUE}</p>"
