"""`prectr export`: a run's checkpoint becomes a folder that serves: nothing in it is pickled, nothing needs the run.

config.yaml               the run's configuration
schema.json               what a request looks like, as a JSON Schema
towers.safetensors        the towers, without a Hugging Face encoder
tables/NAME.safetensors   one file a table
item_vectors/             vectors of items, where the ranker reads them and is to know them
text/                     tokenizer and encoder in Hugging Face layout, document frequencies
export.json               what was exported, the measured figures, size and digest of each file
README.md                 model card
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from prectr_torchrec.checkpoints.manifest import broken_files
from prectr_torchrec.checkpoints.saved import SavedTensors
from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.column_kinds import Vector
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors, item_vectors
from prectr_torchrec.data.schema import TOKENIZER, load_manifest
from prectr_torchrec.distributed.process import quiet_transformers
from prectr_torchrec.models import build_model
from prectr_torchrec.modules import RankingModel, TextEncoder
from prectr_torchrec.runs.layout import checkpoint_path, load_run
from prectr_torchrec.runs.workspace import build_if_absent
from prectr_torchrec.serving.card import model_card
from prectr_torchrec.serving.digests import describe, is_sealed, sealed
from prectr_torchrec.serving.exported_tables import RowPrecision, write_ids, write_table
from prectr_torchrec.serving.request import RequestSchema
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import writes_file
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import made_of, read_json
from prectr_torchrec.system.progress import counted
from prectr_torchrec.text.student import STUDENT, read_student

CONFIG, SCHEMA, TOWERS, TABLES, TEXT, ABOUT = "config.yaml", "schema.json", "towers.safetensors", "tables", "text", "export.json"
TITLES = "titles.safetensors"
EXPORT_VERSION = 4
_TOWERS, _EMBEDDINGS, _SORTED_IDS = "model.model.", "model.embeddings.", "_mch_sorted_raw_ids"


@only_local
@writes_file("out")
def export(
    run: Path,
    out: Path,
    *,
    quantize: Literal["fp16", "int8"] | None = None,
    checkpoint: str = "best",
    vectors: Path | None = None,
    without_vectors: bool = False,
) -> dict[str, Any]:
    """Writes a run's ranker to a folder, aside first and renamed when it is whole; tables pass through memory piece by piece.

    Args:
        run: run directory.
        out: the folder to write; must not be there.
        quantize: precision of the tables' rows; None: as trained.
        checkpoint: as of `runs.checkpoint_path`.
        vectors: prepared folder whose vectors of items go along, so that requests need not bring them.
        without_vectors: requests bring them. A ranker that reads such needs one of the two.

    Returns:
        What `export.json` says.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: `out` is there already, a file of the checkpoint is broken, a table is of a kind that cannot be exported, or
            it is not said where vectors of items are; names it.
    """
    config = load_run(run)
    if out.exists():
        raise ValueError(f"{out} is there already; export to another folder")
    folder = checkpoint_path(run, checkpoint)
    if broken := broken_files(folder):
        raise ValueError("; ".join(broken))
    saved, kept = SavedTensors(folder), None if without_vectors else _kept_vectors(config, vectors)
    tables = {name: _source(name, saved, table) for name, table in config.tables.items()}
    measured = sorted(path.stem for path in run.glob("metrics-*.json"))
    about: dict[str, Any] = {"version": EXPORT_VERSION, "run": config.name, "checkpoint": folder.name, "quantize": quantize}
    about |= {**_findings(run), "figures": _all_figures(run, measured), "tables": {}}

    def build(partial: Path) -> None:
        partial.mkdir(parents=True)
        (partial / TABLES).mkdir()
        for name, source in counted(tables.items(), "exporting", "tables"):
            about["tables"][name] = _write_table(partial, name, source, saved, config.tables[name], quantize)
        with quiet_transformers():
            model = build_model(config, run / TOKENIZER, kept=True)
            model.load_state_dict(saved.load(_TOWERS))
            served = config.model_copy(update={"text": _write_towers(partial, run, config.text, model)})
        (partial / CONFIG).write_text(dump_config(served), encoding="utf-8")
        _write_json(partial / SCHEMA, RequestSchema(served.data, about["id_kinds"], model.labels).describe())
        _copy_vectors(kept, partial)
        about["files"] = describe(partial, (path for path in partial.rglob("*") if path.is_file()))
        _write_json(partial / ABOUT, sealed(about))
        with made_of(*(run / f"{name}.json" for name in measured)):
            card = model_card(served.model.kind, model.reported, about)
        (partial / "README.md").write_text(card, encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    build_if_absent(out, build)
    return about


def _kept_vectors(config: RunConfig, prepared: Path | None) -> Path | None:
    """The folder of vectors of items that goes along."""
    read = [column.key for column, _ in item_vectors(config.data) if Vector.declared_as in config.reads().declared]
    if not read:
        return None
    if prepared is None:
        raise ConfigError(
            f"the ranker reads vectors of items ({', '.join(read)}): name the prepared folder that has them (--vectors DIR), or "
            "let requests bring them (--without-vectors)"
        )
    ItemVectors.of(config.data, prepared / ITEM_VECTORS)
    return prepared / ITEM_VECTORS


def _copy_vectors(kept: Path | None, folder: Path) -> None:
    if kept is not None:
        shutil.copytree(kept, folder / ITEM_VECTORS)


def read_about(folder: Path) -> dict[str, Any]:
    """What `export.json` of a folder says.

    Raises:
        FileNotFoundError: there is no exported ranker.
        ValueError: it was exported by another release, or the file is damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no exported ranker ({ABOUT} is missing); `prectr export` makes one")
    about: dict[str, Any] = read_json(path)
    if about.get("version") != EXPORT_VERSION:
        raise ValueError(f"{folder}: export version {about.get('version')!r}, this release reads {EXPORT_VERSION}; export again")
    if not is_sealed(about):
        raise ValueError(f"{path}: not what was written: its digest is another; copy the folder anew, or export again")
    return about


def _source(name: str, saved: SavedTensors, table: TableConfig) -> str:
    """The name of a table's rows in the checkpoint.

    Raises:
        ConfigError: they are not plain rows.
    """
    if table.ids == "managed" and table.managed.algorithm != "sorted":
        raise ConfigError(f"tables.{name}.managed.algorithm: {table.managed.algorithm!r} cannot be exported; 'sorted' can")
    found = [key for key in saved.names(_EMBEDDINGS) if key.endswith(f".{name}.weight")]
    plain = len(found) == 1 and saved.shape(found[0]) == (table.rows, table.dim)
    if not plain or saved.dtype(found[0]) not in (torch.float32, torch.float16):
        raise ConfigError(
            f"tables.{name}: kernel {table.kernel!r} with dtype {table.dtype!r} does not leave plain fp32 or fp16 rows in a "
            "checkpoint, and cannot be exported"
        )
    return found[0]


def _write_table(
    folder: Path, name: str, source: str, saved: SavedTensors, table: TableConfig, quantize: Literal["fp16", "int8"] | None
) -> dict[str, Any]:
    trained: RowPrecision = "fp16" if saved.dtype(source) == torch.float16 else "fp32"
    precision, path = quantize or trained, folder / TABLES / f"{name}.safetensors"
    write_table(path, saved.pieces(source), table.rows, table.dim, precision)
    if table.ids == "managed":
        (ids,) = (key for key in saved.names(_EMBEDDINGS) if key.endswith(f"_modules.{name}.{_SORTED_IDS}"))
        modules = ids.removesuffix(_SORTED_IDS)
        segments = saved.load(f"{modules}_output_segments_tensor")[""]
        write_ids(
            ids_path(folder, name),
            lambda: saved.pieces(ids),
            lambda: saved.pieces(f"{modules}_mch_remapped_ids_mapping"),
            segments[segments > 0] - 1,
        )
    return {"rows": table.rows, "dim": table.dim, "precision": precision, "bytes": path.stat().st_size}


def ids_path(folder: Path, table: str) -> Path:
    """The map of a managed table."""
    return folder / TABLES / f"{table}.ids.safetensors"


def _write_towers(folder: Path, run: Path, text: TextConfig, model: RankingModel) -> TextConfig:
    """Writes towers, encoder and tokenizer; returns the settings that build them from the folder alone."""
    shutil.copytree(run / TOKENIZER, folder / TEXT, ignore=shutil.ignore_patterns(STUDENT))
    weights, encoder = model.state_dict(), text_encoder(model)
    if encoder is not None:
        encoder.model.save_pretrained(str(folder / TEXT))
        elsewhere = encoder_prefix(model)
        weights = {name: weight for name, weight in weights.items() if not name.startswith(elsewhere)}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, str(folder / TOWERS))
    student = read_student(run / TOKENIZER)
    settings = student["text"]["encoder"] if student is not None else text.encoder
    return text.model_copy(update={"path": None, "start": "encoder", "frozen": False, "encoder": settings})


def text_encoder(model: RankingModel) -> TextEncoder | None:
    """The Hugging Face encoder within the towers, if there is one."""
    text = model.text_side()
    encoder = text.interaction.encoder if text is not None and text.interaction is not None else None
    return encoder if isinstance(encoder, TextEncoder) else None


def encoder_prefix(model: RankingModel) -> str:
    """What the names of the weights begin with that a Hugging Face encoder has within the towers.

    Raises:
        ValueError: there is none.
    """
    encoder = text_encoder(model)
    for name, module in model.named_modules():
        if encoder is not None and module is encoder.model:
            return f"{name}."
    raise ValueError("the towers have no Hugging Face encoder")


def _findings(run: Path) -> dict[str, Any]:
    """What preparation found out of the log that a run was trained on: how it writes its ids, and how positions are examined."""
    manifest = load_manifest(run)
    return {name: manifest[name] for name in ("id_kinds", "examination")}


def _all_figures(run: Path, measured: Sequence[str]) -> dict[str, Any]:
    """Those of each file of measures."""
    return {name.removeprefix("metrics-"): _figures(run / f"{name}.json") for name in measured}


def _figures(path: Path) -> dict[str, Any]:
    measured = read_json(path)
    if "parts" not in measured:
        raise ValueError(f"{path}: measured by an earlier release; run `prectr evaluate` again, or remove the file")
    kept = (
        "checkpoint",
        "split",
        "grades",
        "simulated",
        "rows",
        "requests",
        "clicks",
        "clicks_at_position",
        "labels",
        "value",
        "calibration_by_position",
        "logged_order",
        "relevance",
        "oracle",
    )
    return {name: measured[name] for name in kept if measured.get(name) is not None}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
