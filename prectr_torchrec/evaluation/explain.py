"""`prectr explain`: why a run ranks the candidates of one request as it does, part by part."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.config.data import BatchConfig, DataConfig
from prectr_torchrec.config.score import read_score, score_text
from prectr_torchrec.data.log_ids import COLUMNS as LOG_IDS
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.parquet_files import open_parquet, readable
from prectr_torchrec.data.reader.epoch_plan import list_row_groups
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER, check_findings, load_manifest, read_manifest, sample_schema
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.explanation import Row, observe, rows_of, take_apart, words_of
from prectr_torchrec.evaluation.measures_text import aligned
from prectr_torchrec.evaluation.scoring import default_split
from prectr_torchrec.runs.layout import CONFIG, load_run
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.training.sharded import build_sharded

TITLE = 40
"""Characters of a title in the tables."""
PASTS = {"own_history": "own history", "peers": "other users under the query and its group"}
LEGEND = {
    "predicted level": "level probabilities that the samples bring where there is no grade; zero where they bring none",
    "click probability": "what ranks, the position held at its reference",
}
"""Of what every ranker has; the ranker says what its own parts mean."""


@only_local
def explain(run: Path, data: Path, request_id: int | str, *, split: str | None = None, checkpoint: str = "best") -> Row:
    """Takes one request apart, in this process.

    Args:
        run: run directory.
        data: prepared folder.
        request_id: of the request, as the log writes it.
        split: where it is; default: test, or candidates where there is no test.
        checkpoint: as of `runs.checkpoint_path`.

    Returns:
        Plain values, ready for JSON: the request, and what `take_apart` gives. Ids are as the log writes them.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: the samples do not fit the run, or there is no such split or request.
    """
    config = load_run(run)
    split = split or default_split(data)
    read_manifest(data, config.data, run / CONFIG)
    check_findings(data, run, load_manifest(run))
    ids = LogIds.of_split(data / split)
    sample = find_request(config.data, ids, split, request_id)
    with process_group(config.train.device) as process:
        checkpoints = Checkpoints(run)
        checkpoints.check(checkpoints.path(checkpoint))  # what the model is built of is checked too
        alone = BatchConfig(requests=1, candidates=sample["num_candidates"][0].as_py())  # without padding
        with split_of_one(sample) as place:
            reader = SearchReader(config.model_copy(update={"batch": alone}), *place, run / TOKENIZER, prepared=data)
            batch = next(reader.epoch(0))
        model, _, _ = build_sharded(config, run, process)
        checkpoints.load(checkpoint, {"model": model})
        here = batch.to(process.device)
        task = model.eval().module
        with torch.no_grad():
            inputs = here.inputs(*task.embeddings(here.request_features, here.candidate_features))
            observed = observe(task.model, inputs)
    row = sample.to_pylist()[0]
    found = {
        "run": config.name,
        "checkpoint": checkpoint,
        "split": split,
        **{name: row[name] for name in ("request_id", "user_id", "query_id", "query")},
        **take_apart(config.data, row, observed, config.score, words_of(load_tokenizer(run / TOKENIZER).get_vocab())),
    }
    for column in LOG_IDS:
        rows = [row for row in (found, *rows_of(found)) if column in row]
        originals = ids.restore(column, (row[column] for row in rows))
        for row in rows:
            row[column] = originals[row[column]]
    return found


def find_request(data: DataConfig, ids: LogIds, split: str, request_id: int | str) -> pa.Table:
    """The sample of a request, one row; `request_id` as the log writes it.

    Raises:
        ValueError: no such split, or no such request in it.
    """
    example, wanted = None, ids.parse("request_id", request_id)
    for group in list_row_groups(ids.folder, split, sample_schema(data), np.iinfo(np.int32).max):
        with readable(group.path), open_parquet(group.path) as file:
            requests = file.read_row_group(group.index, columns=["request_id"])["request_id"].to_numpy()
            found = np.flatnonzero(requests == wanted)
            if len(found):
                return file.read_row_group(group.index).slice(int(found[0]), 1)
            example = int(requests[0]) if example is None and len(requests) else example
    hint = "the split is empty"
    if example is not None:
        hint = f"one that is there: {ids.restore('request_id', [example])[example]}"
    raise ValueError(f"{ids.folder / split}: no request {request_id} in this split; {hint}")


@contextlib.contextmanager
def split_of_one(sample: pa.Table) -> Iterator[tuple[Path, str]]:
    """A prepared folder for the reader, and its split, of one request alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request" / "part-00000.parquet"
        path.parent.mkdir()
        pq.write_table(sample, path)
        yield Path(folder), path.parent.name


def format_explanation(found: Row) -> str:
    """`explain`'s findings as aligned tables of plain text."""
    who = f"user {found['user_id']}" if found["user_id"] else "nobody known"
    lines = [
        f"request {found['request_id']} of {found['split']}: {found['query']!r} (query {found['query_id']}) by "
        f"{who}; run {found['run']}, {found['checkpoint']} checkpoint",
        *([", ".join(f"{_heading(name)} {_number(value)}" for name, value in found["numbers"].items())] * bool(found["numbers"])),
        "",
    ]
    parts = found["parts"]
    table = [_cells(row, parts) for row in found["candidates"]]
    lines += _table(table)
    legend = LEGEND
    if "score" in found:
        legend = {
            **LEGEND,
            "score": f"what ranks: {score_text(read_score(found['score']))}, expected with the position at its reference",
        }
        del legend["click probability"]
    legend |= {_heading(name): part["meaning"] for name, part in parts.items()}
    lines += ["", *(f"{heading}: {legend[heading]}" for heading in (table[0] if table else ()) if heading in legend)]
    for name, words in found.get("taste", {}).items():
        if words:
            lines += ["", f"the user {name} in titles: " + ", ".join(map(_word, words.items()))]
    for name, title in PASTS.items():
        if name in found:
            events = found[name]
            nothing = ", ".join(f"{attention} {weight:.3f}" for attention, weight in events["nothing_fits"].items())
            counted = f"{len(events['strongest'])} strongest of {events['events']} events by attention"
            lines += ["", f"{title}: {counted}" + (f"; attention on none of them: {nothing}" if nothing else "")]
            lines += _table([_cells(row, parts) for row in events["strongest"]])
    return "\n".join(lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    return aligned([list(rows[0]), *(list(row.values()) for row in rows)], left=2) if rows else []


def _heading(name: str) -> str:
    return name.removesuffix("_id").replace("_", " ")


def _cells(row: Row, parts: Row) -> dict[str, str]:
    """Heading -> text, several values one after the other."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):  # numbers of the log's own, by name, or what a score is made of
            of = "score of " if name == "score_parts" else ""
            cells |= {of + _heading(number): _number(of_one) for number, of_one in value.items()}
            continue
        signed = name in parts and parts[name]["signed"]
        values = value if isinstance(value, list) else [value]
        cells[_heading(name)] = " ".join(_text(name, single, signed=signed) for single in values)
    return cells


def _word(of: tuple[str, float]) -> str:
    return f"{of[0]} {of[1]:+.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _text(name: str, value: Any, *, signed: bool) -> str:
    if value is None:
        return "-"
    if name == "age":
        return _age(value)
    if isinstance(value, float):
        return f"{value:.2f}" if name == "grade" else f"{value:+.3f}" if signed else f"{value:.3f}"
    text = str(value)
    return text if len(text) <= TITLE else f"{text[: TITLE - 3]}..."


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
