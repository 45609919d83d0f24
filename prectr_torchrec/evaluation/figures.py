"""The report's figures: Matplotlib drawings as SVG in the page's own colours."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Metrics = dict[str, Any]

COLOURS = ("#3b8ecb", "#e0762f", "#2ca27a", "#b574d1", "#c79a00", "#cf4f6b")
"""Of middle lightness, so that they read on white and on black."""
DASHES = ("-", "--", "-.", ":")
INK = "#010203"
"""Stands in the figures for the page's own text colour."""
CURVE_POINTS = 200

CLICK_TERMS = {"bce": "Click loss (BCE)", "consistency": "Level consistency"}
GRADE_TERMS = {"anchor": "Relevance anchor"}
PASTS = {"own": "own past", "peers": "others' past"}
SIDES = {"own": "own history", "peers": "peers", "prior": "prior"}
CHECKS = {"ne": "Validation normalised entropy", "auc": "Validation AUC"}


def style() -> AbstractContextManager[None]:
    """The settings that figures are made and drawn under."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = {
        **dict.fromkeys(ink, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "grid.alpha": 0.15,
        "lines.linewidth": 1.6,
    }
    return matplotlib.rc_context(settings)


def training_figure(curves: dict[str, list[Metrics]]) -> Figure | None:
    """Loss terms and validation measures by step; `curves`: run -> the lines of its metrics.jsonl."""
    # graded pairs have no clicks: the click terms of that stage are zero and say nothing
    clicks = {name: [line for line in lines if line.get("stage") != "judgments"] for name, lines in curves.items()}
    checks = {name: [{"step": line["step"], **line.get("validation", {})} for line in lines] for name, lines in curves.items()}
    panels = [
        (heading, {name: _series(lines, key) for name, lines in source.items()}, marker)
        for source, headings, marker in ((clicks, CLICK_TERMS, ""), (curves, GRADE_TERMS, ""), (checks, CHECKS, "o"))
        for key, heading in headings.items()
    ]
    panels = [panel for panel in panels if any(len(points) for points in panel[1].values())]
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (heading, series, marker) in zip(axes, panels, strict=True):
        for i, (name, points) in enumerate(series.items()):
            if len(points):
                axis.plot(*points.T, DASHES[i % 4], color=COLOURS[i % 6], marker=marker, markersize=4, label=name)
        axis.set_title(heading)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _legend(figure, axes)
    return figure


def activity_figure(panels: dict[str, dict[str, dict[str, float]]]) -> Figure | None:
    """Bars by user activity; `panels`: heading -> run -> segment -> value, every run in every panel."""
    if not panels:
        return None
    figure, axes = _panels(len(panels), columns=2)
    for axis, (heading, runs) in zip(axes, panels.items(), strict=True):
        segments = list(dict.fromkeys(s for values in runs.values() for s in values))
        width = 0.8 / len(runs)
        for i, (name, values) in enumerate(runs.items()):
            x = np.arange(len(segments)) + (i - (len(runs) - 1) / 2) * width
            axis.bar(x, [values.get(s, np.nan) for s in segments], width * 0.92, color=COLOURS[i % 6], label=name)
        everything = [v for values in runs.values() for v in values.values()]
        axis.set_ylim(min(0.5, *everything), max(everything) + 0.03)
        axis.set_xticks(range(len(segments)), segments)
        axis.set_xlabel("events of the user before the request")
        axis.set_title(heading)
        axis.grid(False, axis="x")
    _legend(figure, axes)
    return figure


def effect_figure(runs: dict[str, Metrics]) -> Figure | None:
    """Mean effect of the own and of the peers' past against the level, a panel a run; `runs`: run ->
    `personal.effect_by_strictness`."""
    if not runs:
        return None
    figure, axes = _panels(len(runs))
    for axis, (name, groups) in zip(axes, runs.items(), strict=True):
        lines = [(group, whose, means) for group, found in groups.items() for whose, means in found["by_level"].items()]
        for i, (group, whose, means) in enumerate(lines):
            values = np.array(means, dtype=np.float64)  # NaN where None
            label, x = f"{group} users, {PASTS[whose]}", np.arange(1, len(values) + 1)
            axis.plot(x, values, DASHES[i], color=COLOURS[i], marker="o", markersize=4, label=label)
        axis.set(title=name, xlabel="relevance level", ylabel="mean effect, logits")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        axis.axhline(0, color=INK, alpha=0.4, linewidth=1)
    _legend(figure, axes)
    return figure


def weights_figure(runs: dict[str, dict[str, dict[str, float]]]) -> Figure | None:
    """Shares of the preference, stacked, by user activity, a panel a run; `runs`: run -> segment -> side -> weight."""
    if not runs:
        return None
    figure, axes = _panels(len(runs))
    for axis, (name, segments) in zip(axes, runs.items(), strict=True):
        bottom = np.zeros(len(segments))
        for i, side in enumerate(next(iter(segments.values()))):
            heights = np.array([weights[side] for weights in segments.values()])
            axis.bar(range(len(segments)), heights, 0.7, bottom=bottom, color=COLOURS[i], label=SIDES[side])
            bottom += heights
        axis.set_xticks(range(len(segments)), list(segments))
        axis.set(title=name, xlabel="events of the user before the request", ylabel="mean weight", ylim=(0, 1))
        axis.grid(False, axis="x")
    _legend(figure, axes)
    return figure


def importance_figure(runs: dict[str, dict[str, Metrics]]) -> Figure | None:
    """What the AUC loses by each column, with its interval, a panel a run; `runs`: run -> column -> `loss` and `interval`."""
    measured = {run: {n: c for n, c in columns.items() if c["loss"] is not None} for run, columns in runs.items()}
    if not any(measured.values()):
        return None
    rows = max(len(columns) for columns in measured.values())
    figure = Figure(figsize=(5.2 * min(len(measured), 2), (0.21 * rows + 0.8) * -(-len(measured) // 2)), layout="constrained")
    axes = [figure.add_subplot(-(-len(measured) // 2), min(len(measured), 2), i + 1) for i in range(len(measured))]
    for i, (axis, (name, columns)) in enumerate(zip(axes, measured.items(), strict=True)):
        losses = np.array([column["loss"] for column in columns.values()])
        error = np.array([column["interval"][1] for column in columns.values()]) - losses
        axis.barh(range(len(columns)), losses, 0.7, xerr=error, color=COLOURS[i % 6], ecolor=INK)
        axis.set_yticks(range(len(columns)), list(columns))
        axis.invert_yaxis()
        axis.set(title=name, xlabel="loss of AUC")
        axis.grid(False, axis="y")
    return figure


def calibration_figure(runs: dict[str, list[Metrics]]) -> Figure | None:
    """Reliability curves; `runs`: run -> bins of `metrics.reliability`."""
    if not any(runs.values()):
        return None
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axis = figure.add_subplot()
    limit = max(b[key] for bins in runs.values() for b in bins for key in ("predicted", "observed")) * 1.05
    axis.plot([0, limit], [0, limit], color=INK, alpha=0.4, linewidth=1)
    for i, (name, bins) in enumerate(runs.items()):
        predicted, observed = ([b[key] for b in bins] for key in ("predicted", "observed"))
        if bins:
            axis.plot(predicted, observed, DASHES[i % 4], color=COLOURS[i % 6], marker="o", markersize=4, label=name)
    axis.set(xlabel="predicted", ylabel="observed", xlim=(0, limit), ylim=(0, limit))
    _legend(figure, [axis])
    return figure


def svg(figure: Figure, name: str, alternative: str) -> str:
    """The figure as an SVG element in the page's text colour, its ids made its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", name.lower())
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text).replace(INK, "currentColor")
    width = float(figure.get_figwidth()) * 96
    return text.replace("<svg", f'<svg role="img" aria-label="{alternative}" style="max-width:{width:.0f}px"', 1)


def _series(lines: list[Metrics], key: str) -> np.ndarray[Any, Any]:
    """(points, 2) steps and values, averaged down to CURVE_POINTS."""
    found = np.array([(line["step"], line[key]) for line in lines if line.get(key) is not None], dtype=np.float64).reshape(-1, 2)
    blocks = np.array_split(found, min(CURVE_POINTS, len(found)) or 1)
    return np.array([block.mean(axis=0) for block in blocks if len(block)]).reshape(-1, 2)


def _panels(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.7 * rows + 0.4), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _legend(figure: Figure, axes: list[Axes]) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
