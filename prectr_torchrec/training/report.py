"""`report.html`: runs side by side in one self-contained page that opens without a network, scripts or a server."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prectr_torchrec.training import figures
from prectr_torchrec.training.files import read_lines, replace_text

Metrics = dict[str, Any]

COLUMNS: dict[str, tuple[str, str]] = {
    "auc": ("AUC", "max"),
    "gauc_user": ("GAUC by user", "max"),
    "gauc_request": ("GAUC by request", "max"),
    "normalized_entropy": ("Normalised entropy", "min"),
    "calibration": ("Predicted / observed", "one"),
    "ndcg@10": ("NDCG@10", "max"),
    "expected_auc_shown": ("Expected AUC, shown", "max"),
    "expected_auc_all": ("Expected AUC, all", "max"),
    "share_of_the_way": ("Share of the way", "max"),
}
"""Of the comparison: metric -> heading and what is best."""

CALIBRATION = (
    "Observed click rate against predicted probability, both at the logged position, in bins of about equal size. "
    "On the diagonal a prediction means what it says."
)

WEIGHTS = (
    "What a user's relevance preference is drawn from, by how often the user was seen in training: the own history, other users "
    "under the query and its group, and the learned prior; means over candidates."
)

RELEVANCE = {
    "pairs": "Graded pairs",
    "spearman": "Spearman",
    "auc": "AUC",
    "quadratic_kappa": "Quadratic kappa",
    "pair_accuracy": "Pair accuracy",
}


def write_report(
    out: Path, runs: dict[str, Path], *, splits: Sequence[str] = ("test", "candidates"), title: str = "Search ranking report"
) -> None:
    """Writes one HTML file about evaluated runs.

    Args:
        out: the file.
        runs: name -> run directory with `metrics.jsonl` and the `metrics-<split>.json` of `evaluate`; the first run leads.
        splits: evaluated splits to look for; of each run the first with clicks gives the figures on clicks, and the
            expected AUC comes from the first that covers all candidates.
        title: heading of the page.

    Raises:
        ValueError: a run has not been evaluated.
    """
    measured = {name: _read_metrics(name, run, splits) for name, run in runs.items()}
    curves = {name: [json.loads(line) for line in read_lines(run / "metrics.jsonl")] for name, run in runs.items()}
    activity, effects, weights = _activity(measured), _personal(measured, "effect"), _personal(measured, "weights")
    with figures.style():
        sections = [
            _comparison(measured),
            _figure("Training", figures.training_figure(curves), "Loss terms on training rows, measures on validation rows."),
            _figure("Users by activity", figures.activity_figure(activity), _activity_text(activity)),
            _figure("Personal effect by relevance", figures.effect_figure(effects), _effect_text(effects)),
            _figure("Preference by activity", figures.weights_figure(weights), WEIGHTS),
            _figure("Calibration", figures.calibration_figure({n: f["reliability"] for n, f in measured.items()}), CALIBRATION),
            _relevance(measured),
        ]
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, _page(title, measured, [s for s in sections if s]))


def _read_metrics(name: str, run: Path, splits: Sequence[str]) -> Metrics:
    """The figures of a run: clicks from one split, the expected AUC from the split that has the most of it."""
    files = [run / f"metrics-{split}.json" for split in splits]
    found = [json.loads(path.read_text()) for path in files if path.is_file()]
    if not found:
        raise ValueError(f"{run}: run {name!r} has no {' or '.join(p.name for p in files)}; run `prectr evaluate` on it")
    clicks = next((f for f in found if f["clicks"]["clicks"]), found[0])
    with_oracle = [f for f in found if f["oracle"]]
    whole = next((f for f in with_oracle if f["oracle"]["expected_auc"]["all"]["model"] is not None), None)
    return {**clicks, "truth": whole or next(iter(with_oracle), None), "simulated": any(f["simulated"] for f in found)}


def _comparison(measured: dict[str, Metrics]) -> str:
    rows = {name: _run_row(found) for name, found in measured.items()}
    truth = next((f["truth"]["oracle"] for f in measured.values() if f["truth"]), None)
    clicks = next((f["oracle"] for f in measured.values() if f["oracle"] and f["clicks"]["clicks"]), None)
    references = {}
    if truth:
        for key, label in (("true_grade", "true grade alone"), ("oracle", "oracle")):
            expected = {f"expected_auc_{part}": truth["expected_auc"][part][key] for part in ("shown", "all")}
            references[label] = {**expected, "auc": clicks["logged_auc"][key] if clicks else None}
    columns = [c for c in COLUMNS if any(row.get(c) is not None for row in (*rows.values(), *references.values()))]
    best = {c: _best(rows, c) for c in columns}
    body = [[(_number(row.get(c)), name == best[c]) for c in columns] for name, row in rows.items()]
    body += [[(_number(row.get(c)), False) for c in columns] for row in references.values()]
    table = _table(["Ranker", *(COLUMNS[c][0] for c in columns)], [*rows, *references], body, quiet=len(rows))
    note = "AUC, GAUC and NDCG are of logged clicks, scored at the reference position; entropy and calibration at the logged one."
    if truth:
        note += (
            " Expected AUC weighs pairs by the true click probability, free of position and of the luck of the draw; "
            "the share of the way runs from the true grade alone (0) to the oracle (1)."
        )
    return f"<section><h2>Comparison</h2>{table}<p class=note>{note}</p></section>"


def _run_row(found: Metrics) -> Metrics:
    row = {name: found["clicks"].get(name) for name in COLUMNS}
    row |= {name: found["clicks_at_position"][name] for name in ("normalized_entropy", "calibration")}
    if found["truth"]:
        expected = found["truth"]["oracle"]["expected_auc"]
        row |= {f"expected_auc_{part}": expected[part]["model"] for part in ("shown", "all")}
        whole = expected["all"] if expected["all"]["model"] is not None else expected["shown"]
        row["share_of_the_way"] = whole["share_of_the_way"]
    return row


def _best(rows: dict[str, Metrics], column: str) -> str | None:
    """The run to set in bold, where there are several."""
    values = {name: row[column] for name, row in rows.items() if row[column] is not None}
    keys: dict[str, Callable[[float], float]] = {"max": lambda v: -v, "min": lambda v: v, "one": lambda v: abs(np.log(v))}
    return min(values, key=lambda name: keys[COLUMNS[column][1]](values[name])) if len(values) > 1 else None


def _relevance(measured: dict[str, Metrics]) -> str:
    rows = {
        f"{name}, {'all pairs' if part == 'all' else 'new queries'}": values
        for name, found in measured.items()
        for part, values in found["relevance"].items()
        if values["spearman"] is not None
    }
    if not rows:
        return ""
    body = [[(_number(values[column]), False) for column in RELEVANCE] for values in rows.values()]
    table = _table(["Relevance tower", *RELEVANCE.values()], list(rows), body)
    note = "The tower's own levels against the grades, before any known grade is used; new queries have no training impressions."
    return f"<section><h2>Relevance</h2>{table}<p class=note>{note}</p></section>"


def _activity(measured: dict[str, Metrics]) -> dict[str, dict[str, dict[str, float]]]:
    """Panels of the activity figure: heading -> run -> segment -> value."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    sources = (("AUC on logged clicks", "auc", measured), ("Expected AUC, all candidates", "expected_auc_all", _truths(measured)))
    for heading, key, found in sources:
        segments = {name: [s for s in found[name]["segments"] if s["by"] == "user"] if name in found else [] for name in measured}
        values = {name: {s["segment"]: s[key] for s in of_run if s[key] is not None} for name, of_run in segments.items()}
        if any(values.values()):
            panels[heading] = values
    return panels


def _activity_text(panels: dict[str, dict[str, dict[str, float]]]) -> str:
    """The caption, with the figures of the first run in words."""
    text = "By how often a user was seen in training; the axis starts at chance, 0.5."
    for heading, runs in panels.items():
        name, values = next(iter(runs.items()))
        text += f" {heading}, {name}: " + ", ".join(f"{segment}: {value:.3f}" for segment, value in values.items()) + "."
    return text


def _personal(measured: dict[str, Metrics], part: str) -> dict[str, Metrics]:
    """Run -> its measures of a personal part, on all candidates where there are any; runs without it are left out."""
    found = {}
    for name, of_run in measured.items():
        sources = [(source or {}).get("personal", {}).get(part) for source in (of_run["truth"], of_run)]
        if measures := sources[0] or sources[1]:
            found[name] = measures
    return found


def _effect_text(runs: dict[str, Metrics]) -> str:
    """The caption, with the figures of the first run in words."""
    text = "How much a past changes the click logit of candidates of each level, through all parts of the model: the user's own, "
    text += "and other users' under the query and its group. Strict and indifferent: the upper and the lower third of users by "
    text += "the oracle's strictness, which no run has seen."
    for name, groups in list(runs.items())[:1]:
        for group, found in groups.items():
            for whose, means in found["by_level"].items():
                values = ", ".join("no rows" if value is None else f"{value:+.3f}" for value in means)
                text += f" {name}, {found['users']:,} {group} users, {figures.PASTS[whose]}, from the lowest level up: {values}."
    return text


def _truths(measured: dict[str, Metrics]) -> dict[str, Metrics]:
    return {name: found["truth"] for name, found in measured.items() if found["truth"]}


def _figure(heading: str, figure: Figure | None, caption: str) -> str:
    if figure is None:
        return ""
    drawing = figures.svg(figure, heading, html.escape(f"{heading}. {caption}", quote=True))
    return f"<section><h2>{heading}</h2><figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure></section>"


def _table(header: list[str], names: list[str], body: list[list[tuple[str, bool]]], quiet: int | None = None) -> str:
    """An HTML table; cells are (text, bold), rows from `quiet` on are references."""
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in header)
    rows = [f"<th scope=row>{html.escape(name)}</th>" + "".join(f"<td>{'<b>' * b}{t}{'</b>' * b}</td>" for t, b in cells)
            for name, cells in zip(names, body, strict=True)]  # fmt: skip
    lines = [f"<tr{' class=quiet' * (quiet is not None and i >= quiet)}>{row}</tr>" for i, row in enumerate(rows)]
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _number(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _page(title: str, measured: dict[str, Metrics], sections: list[str]) -> str:
    first = next(iter(measured.values()))
    facts = f"{first['requests']:,} requests with {first['rows']:,} candidates ({html.escape(first['split'])} part)."
    simulated = any(found["simulated"] for found in measured.values())
    warning = (
        "<p class=warning role=note><strong>Simulated data.</strong> Users and clicks behind these figures are simulated: "
        "they show whether planted effects are recovered, not how a real shop would fare.</p>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang=en>\n<head><meta charset="utf-8"><meta name=viewport content="width=device-width, '
        f'initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><main><h1>{html.escape(title)}</h1>'
        f"<p>{facts}</p>{warning if simulated else ''}\n" + "\n".join(sections) + "</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --quiet: #5b6570; --paper: #fff; --line: #d9dee3; --note: #fff6dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --quiet: #a2abb4; --paper: #14171a; --line: #343b42; --note: #3a3118; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif !important; }
figcaption, .note { color: var(--quiet); font-size: .9rem; max-width: 46rem; margin: .7rem 0 0; }
.warning { background: var(--note); border-radius: 6px; padding: .6rem .9rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .75rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; line-height: 1.25; color: var(--quiet); }
tbody th { font-weight: 600; }
.quiet th, .quiet td { color: var(--quiet); font-weight: 400; }
"""
