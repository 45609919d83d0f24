"""What every section of the configuration is made of."""

from __future__ import annotations

import difflib
import typing

from pydantic import AfterValidator, BaseModel, ConfigDict

from prectr_torchrec.paths import check_local


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what would be right."""


def _check_local(path: str) -> str:
    check_local(path)
    return path


LocalPath = typing.Annotated[str, AfterValidator(_check_local)]
"""A path of this machine."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the valid names, or nothing."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (valid: {', '.join(sorted(valid))})" if valid else ""
