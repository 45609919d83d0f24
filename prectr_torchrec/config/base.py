"""What every section of the configuration is made of."""

from __future__ import annotations

import typing

from pydantic import AfterValidator, BaseModel, ConfigDict

from prectr_torchrec.system.paths import check_local


def _check_local(path: str) -> str:
    check_local(path)
    return path


LocalPath = typing.Annotated[str, AfterValidator(_check_local)]
"""A path of this machine."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)
