"""Draws the figures of the documentation: `python docs/figures/draw.py` writes them as SVG beside this file."""

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


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def elbow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through points, with a head at its end."""
    axes.plot(*zip(*points[:-1], strict=True), color="#444444", linewidth=1.1, solid_capstyle="butt")
    arrow(axes, points[-2], points[-1])


def frame(axes: Axes, x: float, y: float, width: float, height: float, title: str) -> None:
    """A dashed border around boxes that belong together, with its title inside the upper left corner."""
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="none", edgecolor="#888888", linestyle=(0, (4, 3)))
    )
    axes.text(x + 0.12, y + height - 0.18, title, fontsize=9, color="#555555", va="center", style="italic")


def batch() -> None:
    """The requests of a batch as rows, candidates, past events and texts beside them, and what becomes of each."""
    axes = canvas(9.6, 5.0)
    box(axes, 0, 4.25, 9.6, 0.65, "SearchBatch", "R requests and their C candidates; constant shapes, padding has weight 0", GREY)
    columns = [
        ("request_features", "ids of R rows:\nrequest, history_*,\npeer_*, candidate_*", ORANGE),
        ("candidate_features", "ids of C rows:\nbags of candidates", ORANGE),
        ("packed", "one int64 and one\nfloat32 tensor; columns\nare views by name", ORANGE),
        ("texts", "tokens of distinct\nqueries and titles,\nand who has which", ORANGE),
    ]
    lefts = [place * 2.44 for place in range(4)]
    for left, (title, text, color) in zip(lefts, columns, strict=True):
        box(axes, left, 2.6, 2.28, 1.2, title, text, color)
        arrow(axes, (left + 1.14, 4.21), (left + 1.14, 3.84))
    box(axes, 0, 1.45, 4.72, 0.7, "SearchEmbeddings", "sharded tables: a vector for each id, or pooled", BLUE)
    for left in lefts[:2]:
        arrow(axes, (left + 1.14, 2.56), (left + 1.14, 2.19))
    box(axes, 0, 0.1, 9.6, 0.9, "Inputs", "by name: request (R, D), candidate (C, D), sequences (R, L, D), texts (T, W)", GREEN)
    arrow(axes, (2.36, 1.41), (2.36, 1.04))
    for left in lefts[2:]:
        arrow(axes, (left + 1.14, 2.56), (left + 1.14, 1.04))
    save(axes, "batch.svg")


def model() -> None:
    """From inputs at the bottom to one probability at the top."""
    axes = canvas(10, 6.5)
    inputs = [
        ("query, title", "text", ORANGE),
        ("ids", "user, query, item,\nattributes", ORANGE),
        ("peers' past", "other users\nunder the query", ORANGE),
        ("own past", "the user's last L\nshown items", ORANGE),
        ("counters, grade", "and the log's own\nnumbers, vectors", ORANGE),
    ]
    width = 1.84
    lefts = [place * 2.04 for place in range(5)]
    middles = [left + width / 2 for left in lefts]
    for left, (title, text, color) in zip(lefts, inputs, strict=True):
        box(axes, left, 0, width, 0.95, title, text, color)
    box(axes, lefts[0], 1.4, width, 0.75, "text encoder", "small transformer", BLUE)
    box(
        axes,
        lefts[1],
        1.4,
        3 * 2.04 - 0.2,
        0.75,
        "embedding tables",
        "TorchRec: one table may serve many columns, sharded over ranks",
        BLUE,
    )
    for number, middle in enumerate(middles):
        arrow(axes, (middle, 0.99), (middle, 1.36 if number < 4 else 2.56))
    box(axes, lefts[0], 2.6, width, 0.95, "relevance tower", "query with title:\nlevel probabilities", GREEN)
    preference = "how much this user, and others under\nthe query, care for relevance"
    box(axes, lefts[1], 2.6, 2.04 + width, 0.95, "personal preference", preference, BLUE)
    box(axes, lefts[3], 2.6, width, 0.95, "taste", "titles that the user\nclicked and skipped", BLUE)
    box(axes, lefts[4], 2.6, width, 0.95, "features", "statistics, grade,\nnumbers, vectors", BLUE)
    for place in (0, 1, 2, 3):
        arrow(axes, (middles[place], 2.19), (middles[place], 2.56))
    box(
        axes,
        lefts[1],
        4.0,
        4 * 2.04 - 0.2,
        0.75,
        "click tower",
        "cross network, MLP and shifts: a click logit for each relevance level",
        GREEN,
    )
    for middle in ((middles[1] + middles[2]) / 2, middles[3], middles[4]):
        arrow(axes, (middle, 3.59), (middle, 3.96))
    box(axes, 0, 5.4, 10, 0.95, "one probability", r"$P(\mathrm{click}) = \sum_k \; \pi_k \; \sigma(z_k)$", GREY)
    arrow(axes, (middles[0], 3.59), (middles[0], 5.36))
    axes.text(middles[0] + 0.1, 5.05, r"$\pi_k$", fontsize=11, va="center")
    arrow(axes, (middles[2] + 1.02, 4.79), (middles[2] + 1.02, 5.36))
    axes.text(middles[2] + 1.12, 5.07, r"$z_k$", fontsize=11, va="center")
    save(axes, "model.svg")


def pipeline() -> None:
    """The commands, from a raw log to a served ranking; what they write stands between them."""
    axes = canvas(10.4, 4.3)
    top = [
        ("raw log", "CSV or Parquet", ORANGE),
        ("prectr prepare", "samples", BLUE),
        ("prectr train", "run", BLUE),
        ("prectr export", "model folder", BLUE),
        ("prectr serve", "ranking over HTTP", GREEN),
    ]
    width, step = 1.8, 2.15
    lefts = [place * step for place in range(5)]
    for left, (title, text, color) in zip(lefts, top, strict=True):
        box(axes, left, 1.8, width, 0.8, title, text, color)
    for left in lefts[:-1]:
        arrow(axes, (left + width + 0.03, 2.2), (left + step - 0.03, 2.2))
    frame(axes, lefts[1] - 0.1, 3.0, 2 * step + width + 0.2, 1.25, "optional: a text encoder from a teacher")
    text = [("prectr pairs", "query and title"), ("prectr teach", "soft grades"), ("prectr distill", "text encoder")]
    for left, (title, made) in zip(lefts[1:4], text, strict=True):
        box(axes, left, 3.1, width, 0.75, title, made, BLUE)
    for left in lefts[1:3]:
        arrow(axes, (left + width + 0.03, 3.47), (left + step - 0.03, 3.47))
    elbow(axes, (lefts[0] + width / 2, 2.64), (lefts[0] + width / 2, 3.47), (lefts[1] - 0.03, 3.47))
    elbow(
        axes, (lefts[3] + width / 2, 3.06), (lefts[3] + width / 2, 2.8), (lefts[2] + width / 2, 2.8), (lefts[2] + width / 2, 2.64)
    )
    below = [
        ("prectr init", "configuration", 0),
        ("prectr evaluate", "metrics, predictions", 2),
        ("prectr score", "files of scores", 4),
    ]
    for title, made, place in below:
        box(axes, lefts[place], 0.3, width, 0.8, title, made, BLUE if place < 4 else GREEN)
    box(axes, lefts[3], 0.3, width, 0.8, "prectr report", "one HTML page", GREEN)
    arrow(axes, (lefts[0] + width / 2, 1.76), (lefts[0] + width / 2, 1.14))
    elbow(axes, (lefts[0] + width + 0.03, 0.7), (lefts[1] + width / 2, 0.7), (lefts[1] + width / 2, 1.76))
    arrow(axes, (lefts[2] + width / 2, 1.76), (lefts[2] + width / 2, 1.14))
    arrow(axes, (lefts[2] + width + 0.03, 0.7), (lefts[3] - 0.03, 0.7))
    elbow(
        axes,
        (lefts[3] + width / 2, 1.76),
        (lefts[3] + width / 2, 1.45),
        (lefts[4] + width / 2, 1.45),
        (lefts[4] + width / 2, 1.14),
    )
    save(axes, "pipeline.svg")


def deployment() -> None:
    """What runs where: training as a job, ranking as a service, and what goes between them."""
    axes = canvas(10.4, 4.55)
    frame(axes, 0, 2.85, 10.4, 1.65, "a job, by TorchX: this machine, Slurm or Kubernetes")
    jobs = [("log store", "impressions, clicks", ORANGE), ("prepare", "one process, bounded memory", BLUE)]
    jobs += [("train, evaluate", "ranks with sharded tables", BLUE), ("export", "safetensors, schema, digests", BLUE)]
    lefts = [0.25, 2.85, 5.45, 8.05]
    for left, (title, text, color) in zip(lefts, jobs, strict=True):
        box(axes, left, 3.2, 2.1, 0.85, title, text, color)
    for left in lefts[:-1]:
        arrow(axes, (left + 2.13, 3.62), (left + 2.57, 3.62))
    frame(axes, 0, 0, 10.4, 2.05, "a service")
    services = [("search engine", "finds candidates", ORANGE), ("state", "past events, counters", ORANGE)]
    services += [("prectr serve", "POST /v1/rank", GREEN), ("model folder", "tables mapped from disk", GREY)]
    places = [(0.25, 0.95), (0.25, 0.15), (5.45, 0.5), (8.05, 0.5)]
    for (left, bottom), (title, text, color) in zip(places, services, strict=True):
        box(axes, left, bottom, 2.1, 0.65 if left < 1 else 0.85, title, text, color)
    box(axes, 2.85, 0.5, 2.1, 0.85, "your service", "builds a request", GREY)
    elbow(axes, (2.38, 1.27), (2.6, 1.27), (2.6, 1.06), (2.82, 1.06))
    elbow(axes, (2.38, 0.47), (2.6, 0.47), (2.6, 0.79), (2.82, 0.79))
    arrow(axes, (4.98, 1.05), (5.42, 1.05))
    arrow(axes, (5.42, 0.8), (4.98, 0.8))
    arrow(axes, (8.02, 0.92), (7.58, 0.92))
    arrow(axes, (9.1, 3.16), (9.1, 1.39))
    axes.text(9.2, 2.45, "a new folder, a link,\nSIGHUP", fontsize=8, va="center", color="#444444")
    elbow(axes, (3.9, 1.39), (3.9, 2.45), (1.3, 2.45), (1.3, 3.16))
    axes.text(2.6, 2.58, "what was shown, and clicked", fontsize=8, ha="center", color="#444444")
    save(axes, "deployment.svg")


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "prectr", "svg.fonttype": "none"})
    for draw in (layout, batch, model, pipeline, deployment):
        draw()
