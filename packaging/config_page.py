"""Writes docs/reference/config.md from the classes of the configuration: `python packaging/config_page.py`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.run import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "config.md"
HEAD = """# Configuration

Written by `packaging/config_page.py` from `prectr_torchrec/config/`. `prectr config --config CONFIG` prints one, resolved and
with the same documentation. `base:` inherits from another file or a shipped one; `--set key.sub=value` changes one setting.

`*` stands for a name of yours, `[]` for a place in a list. A section of several kinds has a table for each.
"""


PLAIN = {str: "text", bool: "true, false", int: "whole number", float: "number", Any: "anything"}


class Place(NamedTuple):
    """Where a section may stand.

    Attributes:
        path: `tables.*.managed`.
        kind: of the ranker that it belongs to; "" elsewhere.
    """

    path: str
    kind: str


def page() -> str:
    """The page as it should be: each section once, with all its places."""
    places: dict[type[Section], list[Place]] = {}
    for place, section in sections(RunConfig, Place("", "")):
        places.setdefault(section, []).append(place)
    return "\n".join([HEAD, *(_table(section, found) for section, found in places.items())])


def sections(root: type[Section], place: Place) -> Iterator[tuple[Place, type[Section]]]:
    """The sections below one, itself first."""
    kind = root.model_fields.get("kind")
    place = place if kind is None else Place(place.path, str(kind.default))
    yield place, root
    for name, field in root.model_fields.items():
        for more, section in _sections_of(field.annotation):
            yield from sections(section, Place(f"{place.path}.{name}{more}".lstrip("."), place.kind))


def _sections_of(annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield "", annotation
        return
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    more = {dict: ".*", list: "[]"}.get(origin, "")
    seen = set()
    for argument in arguments[:1] if origin is typing.Annotated else arguments:
        for below, section in _sections_of(argument):
            if section not in seen:
                seen.add(section)
                yield more + below, section


def _table(section: type[Section], places: list[Place]) -> str:
    first, others = places[0], dict.fromkeys(place.path for place in places[1:])
    title = f"`{first.path}`" if first.path else "The file"
    kinds = dict.fromkeys(f"`{place.kind}`" for place in places if place.kind)
    title += f", kind {', '.join(kinds)}" if kinds else ""
    also = [path for path in others if path != first.path and ".members." not in path]
    text = [f"The same: {', '.join(f'`{path}`' for path in also)}.", ""] if also else []
    rows = [_row(name, field) for name, field in section.model_fields.items()]
    return "\n".join([f"## {title}", "", *text, "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    kind = ", ".join([_type(field.annotation), *(bound for part in field.metadata for bound in _bounds(part))])
    return f"| `{name}` | {_cell(kind)} | {_cell(_default(field))} | {_cell(meaning)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, Section):
        return ""
    if isinstance(value, dict | list) and (_sections_in(value) or len(str(value)) > 60):
        return ""
    if value in ({}, []):
        return "empty"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


def _sections_in(values: Any) -> bool:
    return any(isinstance(value, Section) for value in (values.values() if isinstance(values, dict) else values))


def _bounds(part: Any) -> Iterator[str]:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if (bound := getattr(part, name, None)) is not None:
            yield f"{sign} {bound:g}"


def _type(annotation: Any) -> str:
    arguments, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"{_type(arguments[1])}, by name"
    if origin in (list, tuple):
        return f"list of {_type(next(part for part in arguments if part is not Ellipsis))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if annotation in (None, type(None)):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return PLAIN[annotation]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
