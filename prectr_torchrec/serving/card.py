"""The model card of an exported ranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from prectr_torchrec.evaluation.measures_text import LABEL_COLUMNS, PAIRS
from prectr_torchrec.evaluation.predictions import LEVELS
from prectr_torchrec.modules import ReportedPart

PROBABILITY = ("normalized_entropy", "log_loss", "calibration")
BY_POSITION = ("rows", "clicks", "predicted", "observed", "calibration")


def model_card(kind: str, reported: Mapping[str, ReportedPart], about: dict[str, Any]) -> str:
    """`README.md` of an exported folder, with the front matter that the Hugging Face hub reads."""
    tags = ["search-ranking", "click-prediction", *(["relevance"] if LEVELS in reported else []), "torchrec"]
    head = {"library_name": "prectr-torchrec", "pipeline_tag": "text-ranking", "tags": tags}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {about['run']}",
        "",
        f"A search ranker of kind `{kind}`: the probability that a user clicks a candidate.",
        f"Exported from checkpoint `{about['checkpoint']}` of the run `{about['run']}`.",
        "",
        "    from prectr_torchrec import Ranker",
        "",
        '    ranker = Ranker.load("THIS FOLDER")',
        '    scores = ranker.score({"query": "red lamp", "candidates": [{"item_id": 7, "title": "Red oak lamp"}]})',
        "",
        "From a hub, `THIS FOLDER` is what `huggingface_hub.snapshot_download` returns.",
        "`schema.json` says what a request may hold. `text/` is a tokenizer"
        + (" and an encoder" if "text/config.json" in about["files"] else "")
        + " in Hugging Face layout.",
        "",
        "## Tables",
        *_table(
            ["table", "rows", "dim", "precision", "MB"],
            [
                [name, f"{t['rows']:,}", t["dim"], t["precision"], f"{t['bytes'] / 1e6:,.1f}"]
                for name, t in about["tables"].items()
            ],
        ),
        "",
        *_reported(reported),
        "## Measured",
        *_figures(about),
    ]
    return "\n".join(lines) + "\n"


def _reported(reported: Mapping[str, ReportedPart]) -> list[str]:
    if not reported:
        return []
    rows = [[f"`{name}`", part.meaning] for name, part in reported.items()]
    return ["## What it reports of each candidate", *_table(["part", "meaning"], rows), ""]


def _figures(about: dict[str, Any]) -> list[str]:
    if not about["figures"]:
        return ["Nothing was measured before the export (`prectr evaluate`)."]
    lines = ["By `prectr evaluate`, before any quantisation of the tables." if about["quantize"] else "By `prectr evaluate`."]
    for figures in about["figures"].values():
        lines += _split_figures(figures)
    return lines


def _split_figures(figures: dict[str, Any]) -> list[str]:
    """Ranking at the reference position, where the model serves; probabilities against clicks at the logged positions."""
    simulated = ", of a simulated log" if figures["simulated"] else ""
    hidden = ", candidates' grades hidden from the model" if figures["grades"] == "hidden" else ""
    lines = ["", f"Split `{figures['split']}`, {figures['checkpoint']} checkpoint{simulated}{hidden}:"]
    if figures["clicks"]["clicks"]:
        rows = [[name, _number(value)] for name, value in figures["clicks"].items()]
        lines += _table(["ranking of clicks, position held at its reference", "value"], rows)
        rows = [[name, _number(figures["clicks_at_position"][name])] for name in PROBABILITY]
        lines += _table(["click probabilities, at the logged position", "value"], rows)
        rows = [
            [line["position"], *(_number(line[column]) for column in BY_POSITION)] for line in figures["calibration_by_position"]
        ]
        lines += _table(["logged position", *BY_POSITION[:-1], "predicted / observed"], rows)
    if labels := figures.get("labels"):
        rows = [[label, *(_number(found[column]) for column in LABEL_COLUMNS)] for label, found in labels.items()]
        lines += _table(["label", *LABEL_COLUMNS], rows)
    if compared := figures.get("logged_order"):
        lines += ["", f"On the shown candidates: {compared['verdict']['text']}."]
    if oracle := figures.get("oracle"):
        served = f"{_number(oracle['calibration'])} of the true one on shown candidates"
        lines += ["", f"The mean probability that is served, at the reference position, is {served}."]
    rows = [
        [f"{PAIRS[part]}, {name}", _number(value)]
        for part, measures in figures.get("relevance", {}).items()
        if measures["pairs"]
        for name, value in measures.items()
    ]
    return lines + (_table(["relevance tower against grades", "value"], rows) if rows else [])


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"
