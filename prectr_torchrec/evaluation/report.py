"""`report.html`: runs side by side in one self-contained page that opens without a network, scripts or a server."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prectr_torchrec.evaluation import figures
from prectr_torchrec.evaluation.measures_text import PAIRS
from prectr_torchrec.evaluation.predictions import HIDDEN
from prectr_torchrec.evaluation.report_html import number, page, table
from prectr_torchrec.evaluation.report_labels import labels_section
from prectr_torchrec.evaluation.report_paired import difference, paired_section
from prectr_torchrec.runs.workspace import read_records, replace_text
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import made_of, read_json

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
    "served_over_true": ("Served / true", "one"),
}
"""Of the comparison: metric -> heading and what is best."""

CALIBRATION = (
    "Observed click rate against predicted probability, both at the logged position, in bins of about equal size. "
    "On the diagonal a prediction means what it says."
)

IMPORTANCE = (
    "What the AUC of the clicks loses where one column's values are exchanged at random among requests or candidates, with 95 % "
    "bootstrap intervals by request. Columns that say alike stand in for each other."
)

WEIGHTS = (
    "What a user's relevance preference is drawn from, by the user's events before the request: the own history, other users "
    "under the query and its group, and the learned prior; means over candidates."
)

DIFFERENCES = {
    "position_corrected": ("Clicks corrected for position", ("ndcg@10", "ndcg@3", "pair_accuracy", "auc")),
    "logged": ("Clicks as logged", ("ndcg@10", "ndcg@3", "gauc_request", "auc")),
}
"""Kind of clicks -> heading and measures."""
MEASURES = {
    "ndcg@10": "NDCG@10",
    "ndcg@3": "NDCG@3",
    "pair_accuracy": "Pairs in order",
    "gauc_request": "GAUC by request",
    "auc": "AUC",
}

RELEVANCE = {
    "pairs": "Graded pairs",
    "spearman": "Spearman",
    "auc": "AUC",
    "quadratic_kappa": "Quadratic kappa",
    "pair_accuracy": "Pair accuracy",
}


@only_local
def write_report(
    out: Path, runs: dict[str, Path], *, splits: Sequence[str] = ("test", "candidates"), title: str = "Search ranking report"
) -> None:
    """Writes one HTML file about evaluated runs.

    Args:
        out: the file.
        runs: name -> run directory with `metrics.jsonl` and the `metrics-<split>.json` of `evaluate`; the first run leads. Where
            there is a `metrics-<split>-grades-hidden.json` too, the run has a second row for it.
        splits: evaluated splits to look for; of each run the first with clicks gives the figures on clicks, and the
            expected AUC comes from the first that covers all candidates.
        title: heading of the page.

    Raises:
        ValueError: a run has not been evaluated, or by an earlier release.
    """
    measured = {name: _read_metrics(name, run, splits) for name, run in runs.items()}
    with_hidden = _with_hidden(measured, runs, [f"{split}{HIDDEN}" for split in splits])
    curves = {name: read_records(run / "metrics.jsonl") for name, run in runs.items()}
    important = {name: columns for name, run in runs.items() if (columns := _read_importance(run, splits))}
    read = [path for run in runs.values() for path in (*sorted(run.glob("*-*.json")), run / "metrics.jsonl")]
    with made_of(*read), figures.style():
        activity, effects, weights = _activity(measured), _personal(measured, "effect"), _personal(measured, "weights")
        sections = [
            _comparison(measured, with_hidden),
            paired_section(measured, runs),
            labels_section(with_hidden),
            _logged_order(with_hidden),
            _figure("Training", figures.training_figure(curves), "Loss terms on training rows, measures on validation rows."),
            _figure("Users by activity", figures.activity_figure(activity), _activity_text(activity)),
            _figure("Personal effect by relevance", figures.effect_figure(effects), _effect_text(effects)),
            _figure("Preference by activity", figures.weights_figure(weights), WEIGHTS),
            _parts(measured),
            _figure("Calibration", figures.calibration_figure({n: f["reliability"] for n, f in measured.items()}), CALIBRATION),
            _calibration_by_position(measured),
            _relevance(measured),
            _figure("Importance of columns", figures.importance_figure(important), IMPORTANCE),
        ]
        text = page(title, measured, [s for s in sections if s])
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, text)


def _read_metrics(name: str, run: Path, splits: Sequence[str]) -> Metrics:
    """The figures of a run: clicks from one split, the expected AUC from the split that has the most of it."""
    files = [run / f"metrics-{split}.json" for split in splits]
    found = [read_json(path) for path in files if path.is_file()]
    if not found:
        raise ValueError(f"{run}: run {name!r} has no {' or '.join(p.name for p in files)}; run `prectr evaluate` on it")
    if any("parts" not in f for f in found):
        raise ValueError(f"{run}: run {name!r} was measured by an earlier release; run `prectr evaluate` on it again")
    with made_of(*files):
        clicks = next((f for f in found if f["clicks"]["clicks"]), found[0])
        with_oracle = [f for f in found if f["oracle"]]
        whole = next((f for f in with_oracle if f["oracle"]["expected_auc"]["all"]["model"] is not None), None)
        return {**clicks, "truth": whole or next(iter(with_oracle), None), "simulated": any(f["simulated"] for f in found)}


def _read_importance(run: Path, splits: Sequence[str]) -> dict[str, Metrics]:
    """The columns of a run by name, of the first split that they were measured on."""
    found = next((path for split in splits if (path := run / f"importance-{split}.json").is_file()), None)
    columns: dict[str, Metrics] = read_json(found)["columns"] if found else {}
    return columns


def _with_hidden(measured: dict[str, Metrics], runs: dict[str, Path], splits: Sequence[str]) -> dict[str, Metrics]:
    """The runs, each followed by its figures with hidden grades where there are such files."""
    found = {}
    for name, visible in measured.items():
        found[name] = visible
        if any((runs[name] / f"metrics-{split}.json").is_file() for split in splits):
            found[f"{name}, grades hidden"] = _read_metrics(name, runs[name], splits)
    return found


def _comparison(measured: dict[str, Metrics], with_hidden: dict[str, Metrics]) -> str:
    rows = {name: _run_row(found) for name, found in with_hidden.items()}
    truth = next((f["truth"]["oracle"] for f in measured.values() if f["truth"]), None)
    clicks = next((f["oracle"] for f in measured.values() if f["oracle"] and f["clicks"]["clicks"]), None)
    references: dict[str, Metrics] = {}
    if logged := next((f["logged_order"]["logged"] for f in measured.values() if f["logged_order"]), None):
        references["logged order"] = {name: values["logged_order"] for name, values in logged.items()}
    if truth:
        for key, label in (("true_grade", "true grade alone"), ("oracle", "oracle")):
            expected = {f"expected_auc_{part}": truth["expected_auc"][part][key] for part in ("shown", "all")}
            references[label] = {**expected, "auc": clicks["logged_auc"][key] if clicks else None}
    columns = [c for c in COLUMNS if any(row.get(c) is not None for row in (*rows.values(), *references.values()))]
    best = {c: _best({name: rows[name] for name in measured}, c) for c in columns}
    body = [[(number(row.get(c)) + _half(with_hidden[name], c), name == best[c]) for c in columns] for name, row in rows.items()]
    body += [[(number(row.get(c)), False) for c in columns] for row in references.values()]
    compared = table(["Ranker", *(COLUMNS[c][0] for c in columns)], [*rows, *references], body, quiet=len(rows))
    note = "AUC, GAUC and NDCG are of logged clicks, scored at the reference position; entropy and calibration at the logged one."
    note += " ± is half of the 95 % interval, requests resampled."
    if truth:
        note += (
            " Expected AUC weighs pairs by the true click probability, free of position and of the luck of the draw; "
            "the share of the way runs from the true grade alone (0) to the oracle (1). Served / true is the mean probability at "
            "the reference position over the true one."
        )
    if len(with_hidden) > len(measured):
        note += " With grades hidden the model scores as if no candidate had a grade; bold is the best of those that see them."
    return f"<section><h2>Comparison</h2>{compared}<p class=note>{note}</p></section>"


def _half(found: Metrics, column: str) -> str:
    """Half of the 95 % interval of a measure of clicks, where there is one."""
    ends = found.get("intervals", {}).get("click", {}).get(column)
    return "" if ends is None else f" ± {(ends[1] - ends[0]) / 2:.4f}"


def _run_row(found: Metrics) -> Metrics:
    row = {name: found["clicks"].get(name) for name in COLUMNS}
    row |= {name: found["clicks_at_position"][name] for name in ("normalized_entropy", "calibration")}
    if found["truth"]:
        expected = found["truth"]["oracle"]["expected_auc"]
        row |= {f"expected_auc_{part}": expected[part]["model"] for part in ("shown", "all")}
        whole = expected["all"] if expected["all"]["model"] is not None else expected["shown"]
        row["share_of_the_way"] = whole["share_of_the_way"]
        row["served_over_true"] = found["truth"]["oracle"]["calibration"]
    return row


def _logged_order(measured: dict[str, Metrics]) -> str:
    """Each run's verdict, and its differences from the logged order."""
    compared = {name: found["logged_order"] for name, found in measured.items() if found["logged_order"]}
    if not compared:
        return ""
    verdicts = "".join(
        f"<li>{html.escape(name)}: {html.escape(found['verdict']['text'])}</li>" for name, found in compared.items()
    )
    tables = ""
    for kind, (heading, measures) in DIFFERENCES.items():
        rows = {name: found[kind] for name, found in compared.items() if found[kind]}
        if not rows:
            continue
        body = [[(difference(row[measure]), False) for measure in measures] for row in rows.values()]
        logged = next(iter(rows.values()))
        body.append([(number(logged[measure]["logged_order"]), False) for measure in measures])
        tables += table([heading, *(MEASURES[measure] for measure in measures)], [*rows, "logged order"], body, quiet=len(rows))
    limit = next(iter(compared.values()))["max_weight"]
    note = (
        "Differences from the order that was shown, on the shown candidates, with 95 % bootstrap intervals by request. Clicks "
        "come from that order and favour it; corrected, a click weighs 1 / the examination of its position, as the samples "
        f"estimate it, {limit:.0f} at most."
    )
    return f"<section><h2>Against the logged order</h2><ul>{verdicts}</ul>{tables}<p class=note>{note}</p></section>"


def _calibration_by_position(measured: dict[str, Metrics]) -> str:
    lines = {name: {line["position"]: line for line in found["calibration_by_position"]} for name, found in measured.items()}
    first = next(iter(lines.values()))
    if not first:
        return ""
    body = [
        [(number(line["rows"]), False), (number(line["clicks"]), False)]
        + [(number(of_run.get(position, {}).get("calibration")), False) for of_run in lines.values()]
        for position, line in first.items()
    ]
    found = table(["Logged position", "Rows", "Clicks", *lines], list(first), body)
    note = (
        "Predicted over observed clicks, both at the logged position; an overall figure of 1 hides what cancels over positions."
    )
    return f"<section><h2>Calibration by position</h2>{found}<p class=note>{note}</p></section>"


def _best(rows: dict[str, Metrics], column: str) -> str | None:
    """The run to set in bold, where there are several."""
    values = {name: row[column] for name, row in rows.items() if row[column] is not None}
    keys: dict[str, Callable[[float], float]] = {"max": lambda v: -v, "min": lambda v: v, "one": lambda v: abs(np.log(v))}
    return min(values, key=lambda name: keys[COLUMNS[column][1]](values[name])) if len(values) > 1 else None


def _relevance(measured: dict[str, Metrics]) -> str:
    rows = {
        f"{name}, {PAIRS[part]}": values
        for name, found in measured.items()
        for part, values in found["relevance"].items()
        if values["spearman"] is not None
    }
    if not rows:
        return ""
    body = [[(number(values[column]), False) for column in RELEVANCE] for values in rows.values()]
    found = table(["Relevance tower", *RELEVANCE.values()], list(rows), body)
    note = (
        "The tower's own levels against the grades, before any known grade is used. Trained on: the pair's grade is in the "
        "training samples; known query: the query is, this pair's grade is not; new query: neither impressions nor judgments "
        "have it."
    )
    return f"<section><h2>Relevance</h2>{found}<p class=note>{note}</p></section>"


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
    text = "By a user's events before the request; the axis starts at chance, 0.5."
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


def _parts(measured: dict[str, Metrics]) -> str:
    """Means of what the rankers report of each candidate, and what each says."""
    parts = [(name, part.replace("_", " "), means) for name, found in measured.items() for part, means in found["parts"].items()]
    if not parts:
        return ""
    columns = [c for c in dict.fromkeys(c for _, _, means in parts for c in means) if c != "meaning"]
    body = [[(number(means.get(column)), False) for column in columns] for _, _, means in parts]
    rows = [f"{name}, {part}" for name, part, _ in parts]
    found = table(["Mean by the user's events before the request", *columns], rows, body)
    said = "; ".join(f"{part}: {meaning}" for part, meaning in {part: means["meaning"] for _, part, means in parts}.items())
    return f"<section><h2>Parts of the rankers</h2>{found}<p class=note>{html.escape(said)}.</p></section>"


def _truths(measured: dict[str, Metrics]) -> dict[str, Metrics]:
    return {name: found["truth"] for name, found in measured.items() if found["truth"]}


def _figure(heading: str, figure: Figure | None, caption: str) -> str:
    if figure is None:
        return ""
    drawing = figures.svg(figure, heading, html.escape(f"{heading}. {caption}", quote=True))
    return f"<section><h2>{heading}</h2><figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure></section>"
