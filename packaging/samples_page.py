"""Writes docs/reference/samples.md from the list of columns: `python packaging/samples_page.py`."""

from __future__ import annotations

from pathlib import Path

from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.columns import Column, sample_columns

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "samples.md"
CONFIG = "prectr_v2"
FAMILIES = {
    "request": ("Request", "One value a request."),
    "history": ("Past events of the user", "Lists of one length, oldest first. In a request: objects of `history`."),
    "peer": ("Past events of others", "Lists of one length. In a request: objects of `peers`."),
    "candidate": ("Candidates", "Lists of one length. In a request: objects of `candidates`."),
}
HEAD = f"""# Samples and requests

Written by `packaging/samples_page.py` from `prectr_torchrec/data/columns.py`, for the configuration `{CONFIG}`. A log's
[own columns and labels](../data.md) add theirs.

One row of a sample file is one request. A request to a served ranker has the same values, under the names of the second column.
Those without one are not sent, and what is not required may be missing. Limits and types are in the JSON Schema of an
[export](folders.md#an-exported-ranker), `schema.json`.
"""


def page() -> str:
    """The page as it should be."""
    columns = sample_columns(load_config(CONFIG).data)
    return "\n".join([HEAD, *(_section(family, [c for c in columns if c.family == family]) for family in FAMILIES)])


def _section(family: str, columns: list[Column]) -> str:
    title, text = FAMILIES[family]
    rows = ["| column | in a request | type | meaning |", "|---|---|---|---|", *map(_row, columns)]
    return "\n".join([f"## {title}", "", text, "", *rows, ""])


def _row(column: Column) -> str:
    sent = "" if not column.served else f"`{column.key}`, required" if column.required else f"`{column.key}`"
    kind = f"list of {column.kind.arrow}" if column.listed else str(column.kind.arrow)
    return f"| `{column.name}` | {sent} | `{kind}` | {' '.join(column.doc.split()).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
