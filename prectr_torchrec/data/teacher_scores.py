"""The soft grades that `prectr teach` writes: a folder of `part-NNNNN.parquet`, and `teach.json`, written last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import StringConstraints
from typing_extensions import TypedDict

from prectr_torchrec.config.data import Levels
from prectr_torchrec.data.parquet_files import read_parquet
from prectr_torchrec.system.plain_files import check_shape, read_json

SCORES_VERSION = "1"
MANIFEST = "teach.json"
"""Written last: a folder of soft grades without it is unfinished."""
_KEY = b"prectr_teacher_scores"


def scores_schema(levels: int, hidden_size: int | None) -> pa.Schema:
    """One row a pair, in the order of the file of pairs; `hidden` only where the teacher's hidden states were asked for."""
    fields = [("query_id", pa.int64()), ("item_id", pa.int64()), ("probabilities", pa.list_(pa.float32(), levels))]
    fields += [("hidden", pa.list_(pa.float16(), hidden_size))] if hidden_size else []
    return pa.schema(fields, metadata={_KEY: SCORES_VERSION})


class _Settings(TypedDict):
    pairs: str


class _Manifest(TypedDict):
    boundaries: list[float]
    level_grades: list[float]
    rows: int
    files: list[Annotated[str, StringConstraints(pattern=r"^part-\d+\.parquet$")]]
    hidden_size: int | None
    agreement: dict[str, Any]
    settings: _Settings


def read_scores_manifest(folder: Path, levels: Levels | None = None) -> dict[str, Any]:
    """`teach.json` of a folder: `levels` (K), `boundaries`, `level_grades`, `rows`, `files`, `agreement`, `settings`, ...

    Raises:
        ValueError: the folder is not wholly taught, by another release, or of other levels than those given.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: not (wholly) taught, {MANIFEST} is missing; run `prectr teach` with this --out")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("version") != SCORES_VERSION:
        raise ValueError(
            f"{folder}: scores version {manifest.get('version')!r}, this release reads {SCORES_VERSION}; teach again"
        )
    check_shape(manifest, _Manifest, path)
    if levels is not None and manifest["boundaries"] != levels.boundaries:
        raise ValueError(
            f"{folder}: graded with levels bounded by {manifest['boundaries']}, data.levels.boundaries is "
            f"{levels.boundaries}; collect the pairs and teach with this configuration"
        )
    return manifest


def read_teacher_scores(paths: Sequence[Path], *, levels: Levels | None = None, hidden: bool = True) -> pa.Table:
    """The soft grades of one teacher, or the mean of several teachers' of the same pairs.

    Args:
        paths: folders that `prectr teach` wrote, at least one.
        levels: what they have to be of; None: any.
        hidden: whether to read the hidden states of a single teacher that has them.

    Returns:
        `query_id`, `item_id`, `probabilities` and maybe `hidden`, in the order of the pairs.
        `level_grades` and `boundaries` are in the schema's metadata as JSON.

    Raises:
        ValueError: an unfinished folder, one of other levels, or teachers of different levels or pairs.
    """
    assert paths
    manifests = [read_scores_manifest(path, levels) for path in paths]
    first = manifests[0]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        if manifest["boundaries"] != first["boundaries"]:
            raise ValueError(
                f"{path} has levels bounded by {manifest['boundaries']}, {paths[0]} by {first['boundaries']}; "
                "only teachers of the same levels can be averaged"
            )
        if manifest["settings"]["pairs"] != first["settings"]["pairs"]:
            raise ValueError(f"{path} grades other pairs than {paths[0]}; teach both on the same file of pairs")
    columns = ["query_id", "item_id", "probabilities"]
    columns += ["hidden"] if hidden and len(paths) == 1 and first["hidden_size"] else []
    tables = [
        pa.concat_tables(read_parquet(path / name, columns) for name in manifest["files"])
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    for path, found in zip(paths, tables, strict=True):
        width = found.field("probabilities").type
        if len(found) != first["rows"] or width != pa.list_(pa.float32(), len(first["level_grades"])):
            rows = f"{len(found):,} rows of {width} in place of {first['rows']:,} for {len(first['level_grades'])} levels"
            raise ValueError(f"{path}: {rows}; teach again")
    table = tables[0]
    if len(tables) > 1:
        mean = np.stack([probabilities(t) for t in tables]).mean(axis=0, dtype=np.float64)
        table = table.set_column(2, "probabilities", fixed_size_lists(mean.astype(np.float32)))
    return table.replace_schema_metadata({name: json.dumps(first[name]) for name in ("boundaries", "level_grades")})


def probabilities(table: pa.Table) -> NDArray[np.float32]:
    """(N, K) of a table of soft grades."""
    values = table["probabilities"].combine_chunks()
    return np.asarray(values.flatten().to_numpy(), np.float32).reshape(len(table), -1)


def expected_grades(table: pa.Table) -> NDArray[np.float32]:
    """(N,) the mean of the levels' grades under each row's probabilities, of what `read_teacher_scores` returned."""
    return (probabilities(table) @ np.array(json.loads(table.schema.metadata[b"level_grades"]))).astype(np.float32)


def fixed_size_lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, W) as N lists of W."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
