"""Draws the figures of docs/contribute.md: `python docs/figures/draw.py` writes layout.svg and batch.svg beside this file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
BLUE, GREEN, GREY, ORANGE = "#dbe6f6", "#dcefdc", "#eeeeee", "#fbe6cf"
ROWS = [
    [("cli", "the commands", GREY), ("launchers", "TorchX components", GREY)],
    [("serving", "export, Ranker, score, serve, page", GREEN), ("baselines", "mixed effects, trees", GREY)],
    [("evaluation", "predictions, measures, report, explanation", GREEN)],
    [("training", "task, losses, trainer, optimizers", BLUE)],
    [("models", "a configuration becomes a ranker", BLUE)],
    [("text", "teacher, student", ORANGE)],
    [("checkpoints", "saved, moved, inspected", BLUE)],
    [
        ("distributed", "kernels, sharding, plan, launch", BLUE),
        ("state", "sums as of a request", ORANGE),
        ("metrics", "NumPy measures", GREY),
    ],
    [("data", "raw, prepare, reader, pairs, simulate", ORANGE)],
    [("runs", "files of a run", GREY)],
    [("config", "checked settings", GREY)],
    [("system", "paths, files, locks, processes", GREY), ("modules", "torch alone: inputs, parts, rankers, losses, text", BLUE)],
]
"""From top to bottom; a folder imports only from rows beneath it."""


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, color: str) -> None:
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="#666666", linewidth=0.8))
    middle = x + width / 2
    if text:
        axes.text(middle, y + height * 0.66, title, ha="center", va="center", fontsize=10, fontweight="bold")
        axes.text(middle, y + height * 0.28, text, ha="center", va="center", fontsize=8)
    else:
        axes.text(middle, y + height / 2, title, ha="center", va="center", fontsize=9)


def canvas(width: float, height: float) -> Axes:
    figure, axes = pyplot.subplots(figsize=(width, height))
    axes.set_xlim(-0.1, width + 0.1)
    axes.set_ylim(-0.1, height + 0.1)
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return axes


def save(axes: Axes, name: str) -> None:
    figure = axes.figure
    figure.savefig(HERE / name, metadata={"Date": None}, bbox_inches="tight")  # type: ignore[union-attr]
    pyplot.close(figure)  # type: ignore[arg-type]


def layout() -> None:
    axes = canvas(8, len(ROWS) * 0.72)
    for number, row in enumerate(reversed(ROWS)):
        width = (8 - 0.15 * (len(row) - 1)) / len(row)
        for place, (title, text, color) in enumerate(row):
            box(axes, place * (width + 0.15), number * 0.72, width, 0.58, title, text, color)
    save(axes, "layout.svg")


def batch() -> None:
    axes = canvas(9, 4.3)
    box(axes, 0, 3.5, 9, 0.7, "SearchBatch", "R requests, C candidates between them; constant shapes, padding has weight 0", GREY)
    columns = [
        ("request_features", "ids, stride R:\nrequest, history_*,\npeer_*, candidate_*", ORANGE),
        ("candidate_features", "ids, stride C:\nbags of candidates", ORANGE),
        ("packed", "two tensors, int64 and\nfloat32; columns are\nviews by name", ORANGE),
        ("texts", "tokens of distinct\nqueries and titles,\nand who has which", ORANGE),
    ]
    for place, (title, text, color) in enumerate(columns):
        box(axes, place * 2.28, 2.0, 2.12, 1.3, title, text, color)
    box(axes, 0, 1.1, 4.4, 0.7, "SearchEmbeddings", "sharded tables: one vector an id, or pooled", BLUE)
    box(axes, 0, 0.0, 9, 0.9, "Inputs", "request (R, D)   candidate (C, D)   sequences (R, L, D)   texts (T, W)   by name", GREEN)
    axes.annotate("", (2.2, 0.95), (2.2, 1.1), arrowprops={"arrowstyle": "-|>"})
    axes.annotate("", (6.7, 0.95), (6.7, 1.95), arrowprops={"arrowstyle": "-|>"})
    save(axes, "batch.svg")


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "prectr", "svg.fonttype": "none"})
    layout()
    batch()
