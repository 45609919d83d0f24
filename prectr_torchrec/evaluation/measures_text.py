"""The measures of a run as aligned tables of plain text."""

from __future__ import annotations

from typing import Any

from prectr_torchrec.config.score import read_score, score_text

PAIRS = {"all": "all pairs", "trained on": "trained on", "known query": "known query", "new query": "new query"}
"""Headings of the parts of `relevance`."""
LABEL_COLUMNS = (
    "rows",
    "positives",
    "auc",
    "gauc_user",
    "gauc_request",
    "ndcg@3",
    "ndcg@10",
    "normalized_entropy",
    "calibration",
)
NO_TRAINING = "what was trained on is not known: the data folder has no train split; name a prepared folder with --train-data"
UNCOMPARED = "no comparison with the logged order: it takes clicks with logged positions, of two requests at least"


def format_metrics(measured: dict[str, Any]) -> str:
    """The metrics as an aligned table of plain text."""
    simulated = ", simulated data" if measured["simulated"] else ""
    lines = [f"{measured['run']} on {measured['split']}: {measured['rows']:,} rows, {measured['requests']:,} requests{simulated}"]
    if measured["grades"] == "hidden":
        lines += ["the candidates' grades were hidden from the model"]
    click, position = measured["clicks"], measured["clicks_at_position"]
    between = measured["intervals"].get("click", {})
    body = [[name, number(click.get(name)), number(value), bounds(between.get(name))] for name, value in position.items()]
    lines += ["", *aligned([["logged clicks", "at reference position", "at logged position", "95 % interval"], *body])]
    lines += against_lines(measured.get("against"))
    lines += _position_lines(measured["calibration_by_position"])
    lines += _label_lines(measured["labels"], measured["value"], measured["intervals"])
    lines += ["", *_logged_order_lines(measured["logged_order"])]
    body = [[name, number(value)] for name, value in measured["ranking_against_grades"].items()]
    lines += ["", *aligned([["final ranking against grades", ""], *body])]
    if relevance := measured["relevance"]:
        body = [[name, *(number(part[name]) for part in relevance.values())] for name in relevance["all"]]
        lines += ["", *aligned([["relevance tower against grades", *(PAIRS[name] for name in relevance)], *body])]
        lines += [NO_TRAINING] if list(relevance) == ["all"] else []
    if measured["levels_in_order"] is not None:
        lines += ["", f"clicks rise with the level on {measured['levels_in_order']:.2%} of rows"]
    if measured["oracle"]:
        lines += ["", *_oracle_lines(measured["oracle"])]
    columns = ["rows", "auc", "gauc_request", "normalized_entropy", "calibration", "expected_auc_shown", "expected_auc_all"]
    body = [[f"{s['by']} {s['segment']}", *(number(s[c]) for c in columns)] for s in measured["segments"]]
    lines += ["", *aligned([["past events before the request", *columns], *body])]
    return "\n".join(lines)


def _position_lines(positions: list[dict[str, Any]], truth: str = "observed") -> list[str]:
    if not positions:
        return []
    columns = ("rows", "clicks", "predicted", "observed", "calibration")
    headings = ("rows", "clicks", "predicted", truth, f"predicted / {truth}")
    body = [[line["position"], *(number(line[column]) for column in columns)] for line in positions]
    return ["", *aligned([["logged position", *headings], *body])]


def against_lines(found: dict[str, Any] | None) -> list[str]:
    """What `compare_runs` found, beside the name of the other run."""
    lines = []
    for label, measures in found["labels"].items() if found else ():
        body = [
            [name, *(number(value[c]) for c in ("value", "against", "difference")), interval(value["interval"])]
            for name, value in measures.items()
        ]
        assert found is not None
        lines += ["", *aligned([[f"{label} against {found['run']}", "here", "there", "difference", "95 % interval"], *body])]
    return lines


def _label_lines(labels: dict[str, dict[str, Any]], value: dict[str, Any], intervals: dict[str, Any]) -> list[str]:
    lines = []
    if labels:
        body = [[label, *(number(found[column]) for column in LABEL_COLUMNS)] for label, found in labels.items()]
        lines += ["", *aligned([["label", *LABEL_COLUMNS], *body])]
        columns = list(next(iter(intervals.values()), {}))
        body = [[label, *(bounds(found[column]) for column in columns)] for label, found in intervals.items()]
        lines += ["", *aligned([["95 % interval", *columns], *body])] if columns else []
    if value:
        ranked = {name: found for name, found in value.items() if name != "worth"}
        orders = {
            "score": f"by {score_text(read_score(value['worth']))}",
            "click_probability": "by click probability",
            "best": "at best",
        }
        body = [[name, *(number(found[order]) for order in orders)] for name, found in ranked.items()]
        lines += ["", *aligned([["share of the value", *orders.values()], *body])]
    return lines


def _logged_order_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [UNCOMPARED]
    lines = [found["verdict"]["text"]]
    for kind in ("logged", "position_corrected"):
        if measures := found[kind]:
            body = [
                [name, *(number(value[c]) for c in ("model", "logged_order", "difference")), interval(value["interval"])]
                for name, value in measures.items()
            ]
            heading = {"logged": "clicks as logged", "position_corrected": "clicks corrected for position"}[kind]
            lines += ["", *aligned([[heading, "model", "logged order", "difference", "95 % interval"], *body])]
    return lines


def _oracle_lines(oracle: dict[str, Any]) -> list[str]:
    parts = ("shown", "all")
    body = [[name, *(number(oracle["expected_auc"][part][name]) for part in parts)] for name in oracle["expected_auc"]["all"]]
    return [
        *aligned([["expected AUC (oracle)", *parts], *body]),
        f"oracle: {oracle['rows']:,} rows, {oracle['unmatched_rows']:,} of them not predicted",
        f"predictions that it lacks: {oracle['unmatched_predictions']:,}",
        "AUC on logged clicks: " + ", ".join(f"{name} {number(value)}" for name, value in oracle["logged_auc"].items()),
        f"served over true probability, reference position, shown rows: {number(oracle['calibration'])}",
        *_position_lines(oracle["calibration_by_position"], "true"),
    ]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def interval(ends: list[float] | None) -> str:
    """Of a difference."""
    return "-" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def bounds(ends: list[float] | None) -> str:
    """Of a value."""
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    """The first `left` columns to the left, the others to the right, under a rule."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = ["  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]]
