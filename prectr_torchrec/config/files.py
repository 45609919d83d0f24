"""A run's configuration from and to YAML.

``base:`` inherits from another YAML file, ``key.sub=value`` overrides one setting.
"""

from __future__ import annotations

import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.system.errors import ConfigError, nearest
from prectr_torchrec.system.paths import check_local
from prectr_torchrec.system.plain_files import flatten, read_yaml


def find_config(name: str | Path, relative_to: Path | None = None) -> Path:
    """A path as given, beside the file that names it, or the name of a shipped configuration (`prectr_v1`).

    Raises:
        ConfigError: if there is no such file.
    """
    check_local(name, "config")
    shipped = Path(str(resources.files("prectr_torchrec.configs")))
    plain = Path(name)
    candidates = [plain, (relative_to or Path()) / plain, shipped / plain, shipped / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(f"no configuration {str(name)!r}{nearest(plain.stem, (p.stem for p in shipped.glob('*.yaml')))}")


def load_config(name: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Reads a configuration, its bases and the overrides.

    Args:
        name: a YAML file or the name of a shipped configuration.
        overrides: `key.sub=value`, the value in YAML.

    Raises:
        ConfigError: unknown file, unknown key, wrong value; the message names them.
    """
    path = find_config(name)
    tree = _without_removed(_read_tree(path, ()))
    tree.setdefault("name", path.stem)
    if overrides:  # on the whole configuration, so that defaults can be reached into
        features = tree.get("features", {})  # all of them: an override may switch on what reads them
        tree = {**validate_config(tree, str(path)).model_dump(mode="json"), "features": features}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: write it as key.sub=value")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
            raise ConfigError(f"--set {override!r}: {value!r} is not valid YAML") from None
        _set(tree, key.strip().split("."), parsed, override)
    return validate_config(_without_removed(tree), str(path))


def load_whole_config(path: Path) -> RunConfig:
    """A file of `dump_config`, in which all stands that there is.

    Raises:
        ConfigError: as of `load_config`, or a part is missing; names it.
    """
    tree = _read_tree(path, ())
    if missing := sorted(RunConfig.model_fields.keys() - tree - {"score", "trackers"}):  # older runs have none
        raise ConfigError(f"{path}: {missing[0]} is missing; a run keeps its whole configuration: restore the file")
    return validate_config(_without_removed(tree), str(path))


def written_settings(name: str | Path, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """The settings, `key.sub` -> value, that stand in a configuration and its bases, but for shipped ones, and in overrides."""
    path, written = find_config(name), dict[str, Any]()
    shipped = Path(str(resources.files("prectr_torchrec.configs"))).resolve()
    while path.resolve().parent != shipped:
        tree = read_yaml(path) or {}
        base = tree.pop("base", None)
        written = flatten(tree) | written
        if base is None:
            break
        path = find_config(base, path.parent)
    return written | {key.strip(): yaml.safe_load(value) for key, _, value in (given.partition("=") for given in overrides)}


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def describe_config(config: BaseModel, indent: int = 0) -> str:
    """The resolved configuration as YAML with each field's documentation as a comment above it."""
    lines: list[str] = []
    pad = "  " * indent
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if field.description:
            lines += [f"{pad}# {line.strip()}" for line in field.description.splitlines()]
        if isinstance(value, BaseModel):
            lines += [f"{pad}{name}:", describe_config(value, indent + 1)]
        else:
            plain = config.model_dump(mode="json", include={name})
            flow = None if isinstance(value, dict | list) else False
            dumped = yaml.safe_dump(plain, default_flow_style=flow, width=110, sort_keys=False).rstrip()
            lines += [pad + line for line in dumped.splitlines()]
    return "\n".join(lines)


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` goes round in a circle")
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, not {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    inherited = _read_tree(find_config(base, path.parent), (*seen, path.resolve()))
    inherited.pop("name", None)
    return _merge(inherited, tree)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, but for those that name their kind; everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and "kind" not in value  # another kind, other keys
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _without_removed(tree: dict[str, Any]) -> dict[str, Any]:
    """Null removes an inherited table or feature."""
    named = {key: tree[key] for key in ("tables", "features") if isinstance(tree.get(key), dict)}
    return tree | {key: {name: value for name, value in section.items() if value is not None} for key, section in named.items()}


def _set(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(
                    f"--set {override!r}: {'.'.join(keys[:depth])} is a list of {len(node)}; {key!r} is no index of it"
                )
            if last:
                node[int(key)] = value
            else:
                node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            raise ConfigError(f"--set {override!r}: {'.'.join(keys[:depth])} is {node!r} and has no keys")
