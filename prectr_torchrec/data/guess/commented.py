"""YAML with a comment on its lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

Path = tuple[str, ...]
_WIDTH = 120


def commented_yaml(tree: Mapping[str, Any], comments: Mapping[Path, str]) -> str:
    """A mapping as YAML, a line for each key; what is below a key without comments of its own stands in one line.

    Args:
        tree: what YAML can hold.
        comments: path of keys -> what is said of it, beside the line or, where that is too long, above it.

    Example::

        text = commented_yaml({"base": "demo", "data": {"history_length": 50}}, {("base",): "a small ranker"})
        assert text == "base: demo  # a small ranker\\ndata: {history_length: 50}\\n"
    """
    return "\n".join(_lines(tree, comments, ())) + "\n"


def _lines(tree: Mapping[str, Any], comments: Mapping[Path, str], above: Path) -> Iterator[str]:
    pad = "  " * len(above)
    for key, value in tree.items():
        path, name = (*above, key), yaml.safe_dump(key, width=10_000, allow_unicode=True).partition("\n")[0]
        comment = comments.get(path)
        if isinstance(value, dict) and any(other[: len(path)] == path and other != path for other in comments):
            yield from [f"{pad}# {comment}"] if comment else []
            yield f"{pad}{name}:"
            yield from _lines(value, comments, path)
            continue
        line = f"{pad}{name}: {flow_yaml(value)}"
        if comment and len(line) + len(comment) + 4 > _WIDTH:
            yield f"{pad}# {comment}"
            yield line
        else:
            yield f"{line}  # {comment}" if comment else line


def flow_yaml(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
