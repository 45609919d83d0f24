"""What is in a run's checkpoints, read off their manifests and metadata: no process group, and no tensor is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from prectr_torchrec.checkpoints.manifest import PROGRESS, broken_files
from prectr_torchrec.checkpoints.names import parameter_name
from prectr_torchrec.checkpoints.resharding import saving_ranks
from prectr_torchrec.checkpoints.safe_reader import read_metadata
from prectr_torchrec.distributed.planning import columns
from prectr_torchrec.runs.layout import checkpoint_index, checkpoint_names, checkpoint_path, load_run
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.system.sizes import format_bytes


@only_local
def inspect_checkpoint(run: Path, which: str = "last") -> dict[str, Any]:
    """What a run keeps, and what is in one of its checkpoints.

    Args:
        run: run directory.
        which: as of `runs.checkpoint_path`.

    Returns:
        Plain values, ready for JSON: `kept` (names), `last`, `best`, `best_ne`; of the checkpoint its `name` and what is `broken`
        of its files, and unless something is: `step`, `position`, `world_size`, `bytes`; `tables`, by
        name `rows`, `dim`, `dtype`, `bytes`, `ids`, `sharding_type`, `kernel`, `ranks`, `optimizer`, `state_shape`,
        `state_bytes`; `parameters` of the towers, by name `shape` and `dtype`.

    Raises:
        FileNotFoundError: no run, or no such checkpoint in it.
    """
    config, folder, index = load_run(run), checkpoint_path(run, which), checkpoint_index(run)
    broken = broken_files(folder)
    about = {"kept": checkpoint_names(run), **index, "name": folder.name, "broken": broken}
    if broken:
        return about
    progress, saved = read_json(folder / PROGRESS), read_metadata(folder)
    tensors = {name: t for name, t in saved.state_dict_metadata.items() if isinstance(t, TensorStorageMetadata)}
    plan = {name: sharding for tables in progress["job"]["plan"].values() for name, sharding in tables.items()}
    return {
        **about,
        "step": progress["step"],
        "position": progress["position"],
        "world_size": saving_ranks(saved),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "tables": {
            name: {**_table(name, tensors), "ids": table.ids, "optimizer": table.optimizer, **_sharding(plan[name])}
            for name, table in config.tables.items()
        },
        "parameters": {
            parameter_name(name.removeprefix("model.")): {"shape": list(tensor.size), "dtype": _dtype(tensor)}
            for name, tensor in tensors.items()
            if name.startswith("model.") and not name.startswith("model.embeddings.")
        },
    }


def format_inspection(about: dict[str, Any], parameters: bool = False) -> str:
    """For a screen; `parameters` lists the names and shapes of the towers' too."""
    marks = {about.get("best"): "best", about["last"]: "last"}
    if about.get("best") == about["last"]:
        marks = {about["last"]: "last, best"}
    ne = f", validation NE {about['best_ne']:.4f}" if "best_ne" in about else ""
    lines = [f"{name}  {marks.get(name, '')}{ne if name == about.get('best') else ''}".rstrip() for name in about["kept"]]
    lines += ["", about["name"]]
    if about["broken"]:
        return "\n".join([*lines, *(f"  broken: {problem}" for problem in about["broken"])])
    at = about["position"]
    lines += [
        f"  saved by {about['world_size']} ranks at step {about['step']} (stage {at['stage']}, epoch {at['epoch']}, "
        f"{at['batch']} batches into it)",
        f"  {format_bytes(about['bytes'])}; files as they were written",
        "",
        *_indented([_HEAD, *(_row(name, table) for name, table in about["tables"].items())]),
    ]
    if parameters:
        named = [(name, " x ".join(map(str, p["shape"])), p["dtype"]) for name, p in about["parameters"].items()]
        lines += ["", *_indented([("parameter", "shape", "dtype"), *named])]
    else:
        lines += ["", f"and {len(about['parameters'])} tensors of the towers (--parameters lists them)"]
    return "\n".join(lines)


_HEAD = ("table", "rows", "dim", "dtype", "bytes", "ids", "sharding", "kernel", "ranks", "optimizer", "state", "state bytes")


def _row(name: str, table: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"tables.{name}",
        f"{table['rows']:,}",
        str(table["dim"]),
        table["dtype"],
        format_bytes(table["bytes"]),
        table["ids"],
        table["sharding_type"],
        table["kernel"],
        ",".join(map(str, table["ranks"])),
        table["optimizer"],
        " x ".join(map(str, table["state_shape"])) or "none",
        format_bytes(table["state_bytes"]),
    )


def _indented(rows: list[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in columns(rows)]


def _table(table: str, tensors: dict[str, TensorStorageMetadata]) -> dict[str, Any]:
    weight = next(name for name in tensors if name.startswith("model.embeddings.") and name.endswith(f".{table}.weight"))
    prefix = f"optimizer.state.fused.{weight.removeprefix('model.')}."
    states = [tensor for name, tensor in tensors.items() if name.startswith(prefix)]
    rows, dim = tensors[weight].size
    return {
        "rows": rows,
        "dim": dim,
        "dtype": _dtype(tensors[weight]),
        "bytes": _bytes(tensors[weight]),
        "state_shape": list(states[0].size) if states else [],
        "state_bytes": sum(map(_bytes, states)),
    }


def _sharding(planned: dict[str, Any]) -> dict[str, Any]:
    return {"sharding_type": planned["sharding_type"], "kernel": planned["compute_kernel"], "ranks": planned["ranks"]}


def _dtype(tensor: TensorStorageMetadata) -> str:
    return str(tensor.properties.dtype).removeprefix("torch.")


def _bytes(tensor: TensorStorageMetadata) -> int:
    return tensor.size.numel() * tensor.properties.dtype.itemsize
