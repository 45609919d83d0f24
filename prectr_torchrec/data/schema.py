"""The sample files: one row a request. What `prepare` writes, the reader, evaluation and serving read.

K relevance levels; index 0 of every per-level list counts events without a grade, so such lists are K + 1 long. Where levels
were predicted for pairs without a grade, these count among 1..K by their probabilities.
Everything but `candidate_*` labels and `*_trained` was known strictly before `timestamp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import pyarrow as pa
from typing_extensions import TypedDict

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.run import validate_section
from prectr_torchrec.data.columns import sample_columns
from prectr_torchrec.system.plain_files import check_shape, read_json

SAMPLE_VERSION = "10"
MADE_BY = "effects"
"""Key of the manifest: digest of the ranker that sums of effects were made by."""
VERSION_KEY = b"prectr_samples"
PREDICTED_KEY = b"prectr_predicted"
"""In the metadata of files whose `*_predicted` may be other than 0."""
MANIFEST = "prepared.json"
"""Written last: a prepared folder without it is unfinished."""
_AGREED = (
    "levels",
    "item_attributes",
    "user_attributes",
    "columns",
    "labels",
    "feedback_delay",
    "label_window",
    "valid_from",
    "weight",
    "keep_unclicked",
    "effects",
    "history_length",
    "history_events",
    "history_columns",
    "peer_length",
    "peer_events",
    "peer_columns",
    "peer_minimum",
    "query_group",
    "zero_id",
    "examination",
)
"""Keys of `data` that samples and configuration must agree on."""
TOKENIZER = "tokenizer"
"""Sub-folder of a prepared folder in Hugging Face layout."""


def sample_schema(data: DataConfig, *, predicted: bool = False, gathered: bool = False) -> pa.Schema:
    """The Arrow schema of a sample file, whose columns `sample_columns` describes; `gathered`: and of what is gathered for it."""
    metadata = {VERSION_KEY: SAMPLE_VERSION.encode(), **({PREDICTED_KEY: b"true"} if predicted else {})}
    columns = [column for column in sample_columns(data) if gathered or not column.gathered]
    return pa.schema([(column.name, column.arrow) for column in columns], metadata=metadata)


def check_schema(found: pa.Schema, expected: pa.Schema, path: str | Path) -> None:
    """Compares a sample file's schema with the configuration's.

    Raises:
        ValueError: another version, a missing column or another type; names the file and the column.
    """
    version = (found.metadata or {}).get(VERSION_KEY)
    if version != SAMPLE_VERSION.encode():
        raise ValueError(
            f"{path}: sample version {version.decode() if version else 'none'}, this release reads "
            f"{SAMPLE_VERSION}; run `prectr prepare` again"
        )
    for field in expected:
        if field.name not in found.names:
            raise ValueError(f"{path}: column {field.name!r} is missing; prepare the samples with this configuration's `data`")
        if found.field(field.name).type != field.type:
            raise ValueError(f"{path}: column {field.name!r} is {found.field(field.name).type}, expected {field.type}")


def sample_settings(data: DataConfig) -> dict[str, Any]:
    """The settings that samples depend on."""
    return data.model_dump(mode="json", exclude={"memory": True, "levels": {"level_grades"}})


class _Settings(TypedDict):
    data: dict[str, Any]


class _Manifest(TypedDict):
    max_candidates: int
    examination: list[float]
    settings: _Settings
    id_kinds: NotRequired[dict[str, str]]
    by_query: NotRequired[list[str]]
    numbers: NotRequired[dict[str, dict[str, Any]]]
    simulated: NotRequired[bool]
    splits: NotRequired[dict[str, dict[str, Any]]]


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        ValueError: it is not wholly prepared, or was prepared by another release.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: not (wholly) prepared, {MANIFEST} is missing; run `prectr prepare` with this --out")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("version") != SAMPLE_VERSION:
        raise ValueError(
            f"{folder}: sample version {manifest.get('version', 'none')}, this release reads {SAMPLE_VERSION}; prepare again"
        )
    check_shape(manifest, _Manifest, path)
    return manifest


def read_manifest(folder: Path, data: DataConfig, source: Path | str = "the configuration") -> dict[str, Any]:
    """The manifest of a prepared folder, if the folder is whole and fits the configuration, which comes from `source`.

    Raises:
        ValueError: as of `load_manifest`, or it was prepared with other settings; names the key.
    """
    manifest = load_manifest(folder)
    prepared = validate_section(DataConfig, manifest["settings"]["data"], str(folder / MANIFEST))
    made, wanted = sample_settings(prepared), sample_settings(data)
    for key in _AGREED:
        if key == "history_length" and made[key] > wanted[key]:
            continue  # the latest events are read
        as_wanted = made[key] == wanted[key] or (key == "examination" and wanted[key] in (None, manifest["examination"]))
        if not as_wanted:
            raise ValueError(f"{folder}: prepared with data.{key} {made[key]!r}, {source} has {wanted[key]!r}; prepare again")
    return manifest


def check_findings(folder: Path, owner: Path, found: Mapping[str, Any]) -> None:
    """Compares what preparation found out about a log with what it had found out of the log that was trained on.

    Args:
        folder: the prepared folder, or one that no preparation is known of.
        owner: who was trained, for messages.
        found: `id_kinds`, `examination` and the maker of sums of effects, where there are any, of the samples trained on.

    Raises:
        ValueError: ids are read otherwise, so that none would be known again, positions are examined otherwise, or sums of
            effects were made by another ranker.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = load_manifest(folder)
    found_kinds, kinds = (
        {column: kind.replace("unsigned", "integer") for column, kind in findings.get("id_kinds", {}).items()}
        for findings in (manifest, found)
    )
    differing = [name for name in found_kinds.keys() & kinds.keys() if found_kinds[name] != kinds[name]]
    if differing:
        name = min(differing)
        raise ValueError(
            f"{folder}: {name} is read as {found_kinds[name]}, in the samples of {owner} as {kinds[name]}, so no id would be "
            f"known again; write the column as {kinds[name]} and prepare again"
        )
    if manifest.get(MADE_BY) != found.get(MADE_BY, manifest.get(MADE_BY)):
        raise ValueError(
            f"{folder}: its sums of effects were made by another ranker than those of {owner}; run `prectr effects` with the "
            "same run and checkpoint"
        )
    given = found.get("examination")
    if given is not None and manifest["examination"] != given:
        raise ValueError(
            f"{folder}: positions are examined by {_rounded(manifest['examination'])}, in the samples of {owner} by "
            f"{_rounded(given)}; prepare again with data.examination: {given}"
        )


def _rounded(curve: list[float]) -> list[float]:
    return [round(value, 3) for value in curve]
