"""The page of the report: its frame, its tables and its style."""

from __future__ import annotations

import html
from typing import Any

Metrics = dict[str, Any]


def table(header: list[str], names: list[str], body: list[list[tuple[str, bool]]], quiet: int | None = None) -> str:
    """An HTML table; cells are (text, bold), rows from `quiet` on are references."""
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in header)
    rows = [
        f"<th scope=row>{html.escape(name)}</th>" + "".join(f"<td>{'<b>' * b}{t}{'</b>' * b}</td>" for t, b in cells)
        for name, cells in zip(names, body, strict=True)
    ]
    lines = [f"<tr{' class=quiet' * (quiet is not None and i >= quiet)}>{row}</tr>" for i, row in enumerate(rows)]
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def number(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def page(title: str, measured: dict[str, Metrics], sections: list[str]) -> str:
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
