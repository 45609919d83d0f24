"""The model card of an exported ranker."""

from __future__ import annotations

from typing import Any

import yaml

from prectr_torchrec.config import RunConfig


def model_card(config: RunConfig, about: dict[str, Any]) -> str:
    """`README.md` of an exported folder, with the front matter that the Hugging Face hub reads."""
    tags = ["search-ranking", "click-prediction", "relevance", "torchrec"]
    head = {"library_name": "prectr-torchrec", "pipeline_tag": "text-ranking", "tags": tags}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {config.name}",
        "",
        "A search ranker: the probability that a user clicks a candidate, made of relevance levels and the click at each level.",
        f"Exported from checkpoint `{about['checkpoint']}` of the run `{config.name}`.",
        "",
        "    from prectr_torchrec import Ranker",
        "",
        '    ranker = Ranker.load("THIS FOLDER")',
        '    scores = ranker.score({"query": "red lamp", "candidates": [{"item_id": 7, "title": "Red oak lamp"}]})',
        "",
        "From a hub, `THIS FOLDER` is what `huggingface_hub.snapshot_download` returns.",
        "`schema.json` says what a request may hold. `text/` is a tokenizer"
        + (" and an encoder" if config.model.text else "")
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
        "## Measured",
        *_figures(about),
    ]
    return "\n".join(lines) + "\n"


def _figures(about: dict[str, Any]) -> list[str]:
    if not about["figures"]:
        return ["Nothing was measured before the export (`prectr evaluate`)."]
    lines = ["By `prectr evaluate`, before any quantisation of the tables." if about["quantize"] else "By `prectr evaluate`."]
    for split, figures in about["figures"].items():
        simulated = ", of a simulated log" if figures.get("simulated") else ""
        lines += ["", f"Split `{split}`, {figures['checkpoint']} checkpoint{simulated}:", ""]
        rows = [[name, _number(value)] for name, value in figures["clicks"].items()]
        relevance = figures.get("relevance", {}).get("all", {})
        rows += [[f"relevance, {name}", _number(value)] for name, value in relevance.items()]
        lines += _table(["clicks, position held at its reference", "value"], rows)
    return lines


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"
