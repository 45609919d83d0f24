"""JSON and YAML files that others may have written or damaged: read with their names in every complaint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from prectr_torchrec.config_base import ConfigError


def read_json(path: Path, shape: Any = dict[str, Any]) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        shape: the type that it must have, a `TypedDict` where keys are needed; further keys stay.

    Raises:
        ValueError: it is not JSON, or of another shape; names the file and the key.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        TypeAdapter(shape).validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        raise ValueError(f"{path}: {key}{first['msg']}; got {_short(first['input'])}; restore the file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}; restore the file") from None
    return found


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; what it says of Python objects is refused.

    Raises:
        ConfigError: it is not YAML; names the file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
