"""What a user calls the parameters of a model, in `train.init_from` and `train.freeze`.

A table is `tables.<name>`, whatever it is sharded over and whether its ids are managed; a tower's parameter has its path in the
towers, such as `relevance.tower.head.bias`. `prectr checkpoint inspect --parameters` lists them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from prectr_torchrec.system.errors import ConfigError


def parameter_name(key: str) -> str:
    """The name of what stands under `key` in a model's state dict."""
    if key.startswith("embeddings."):
        return f"tables.{key.split('.')[-2]}"
    return key.removeprefix("model.")


def select(names: Iterable[str], include: Iterable[str], exclude: Iterable[str], where: str) -> set[str]:
    """The names that match a pattern of `include` and none of `exclude`; `*` stands for anything, dots among it.

    Args:
        where: the configuration's section, for errors.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    known = set(names)
    wanted, unwanted = ({pattern: _matching(known, pattern) for pattern in patterns} for patterns in (include, exclude))
    for pattern, found in (*wanted.items(), *unwanted.items()):
        if not found:
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`prectr checkpoint inspect --parameters` lists the names of a run"
            raise ConfigError(f"{where}: the pattern {pattern!r} matches no parameter; {hint}")
    return set().union(*wanted.values()) - set().union(*unwanted.values())


def _matching(names: set[str], pattern: str) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern)}
