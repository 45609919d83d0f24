"""`prectr teach`: a teacher's soft grades of all pairs, shared out over ranks and finished piece by piece.

One rank of the job: `torchrun -m prectr_torchrec.text.teach --teacher PATH --pairs FILE --out DIR`. A piece is a row group of
the file of pairs and becomes one part; it is written aside and renamed, so that a job that was killed goes on with the parts
that are missing, on any number of ranks. `teach.json` is written last.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from prectr_torchrec.config.run import validate_section
from prectr_torchrec.data.pairs.pairs import SPLITS, PairsFile
from prectr_torchrec.data.parquet_files import WRITTEN, read_parquet
from prectr_torchrec.data.teacher_scores import MANIFEST, SCORES_VERSION, fixed_size_lists, probabilities, scores_schema
from prectr_torchrec.distributed.process import Process, process_group, run_rank
from prectr_torchrec.metrics import relevance_metrics
from prectr_torchrec.runs.workspace import build_if_absent, file_digest, folder_digest, open_output
from prectr_torchrec.system.locks import job_lock
from prectr_torchrec.system.paths import check_arguments, only_local, unambiguous
from prectr_torchrec.system.progress import Progress
from prectr_torchrec.text.teacher import PROMPT, Teacher, TeacherOptions, load_prompt, load_teacher

Read = TypeVar("Read")


@only_local
def teach(
    teacher: Path,
    pairs: Path,
    out: Path,
    process: Process,
    *,
    hidden: bool = False,
    options: TeacherOptions | None = None,
    prompt: Path = PROMPT,
) -> dict[str, Any]:
    """Grades the pairs that are not graded yet; collective.

    Args:
        teacher: folder of a causal language model or a sequence classifier.
        pairs: file of pairs.
        out: folder to write; may hold an unfinished job with the same settings, which is then finished.
        process: this rank.
        hidden: whether to write pooled hidden states too.
        options: how to run the teacher.
        prompt: prompt file of a causal model.

    Returns:
        What `out/teach.json` holds: `version`, `levels` (K), `boundaries`, `level_grades` (the grade that stands for each level),
        `rows`, `files`, `hidden_size`, `agreement` (by split, as `relevance_metrics` tells it) and the `settings` it came from.

    Raises:
        ValueError: no such teacher or pairs, they do not fit, or `out` holds something else.
    """
    options, source = options or TeacherOptions(), PairsFile.open(pairs)
    model = None
    if not (out / MANIFEST).is_file():  # a teacher that does not fit is refused before the folder is claimed for it
        model = load_teacher(teacher, source.levels.count, options=options, prompt=load_prompt(prompt), device=process.device)
    names = [f"part-{shard:05d}.parquet" for shard in range(len(source.shard_rows))]
    settings = {
        "hidden": hidden,
        "options": options.model_dump(mode="json"),
        "prompt": load_prompt(prompt).model_dump(mode="json"),
        **({"teacher": folder_digest(teacher), "pairs": file_digest(pairs)} if process.rank == 0 else {}),
    }
    finished, missing = _begin(out, settings, names, process)
    if finished is not None:
        return finished
    mine = missing[process.rank :: process.world_size]
    assert model is not None
    _grade_shards(model, source, {shard: out / names[shard] for shard in mine}, hidden, process)
    dist.barrier()
    manifest: list[Any] = [None]
    if process.rank == 0:
        about = {"version": SCORES_VERSION, "levels": source.levels.count, **_describe(source, out, names)}
        manifest = [about | {"settings": settings}]
        build_if_absent(out / MANIFEST, lambda path: path.write_text(json.dumps(manifest[0], indent=1), encoding="utf-8"))
        shutil.rmtree(out / "work")
    dist.broadcast_object_list(manifest)
    return dict(manifest[0])


def _begin(out: Path, settings: dict[str, Any], names: list[str], process: Process) -> tuple[dict[str, Any] | None, list[int]]:
    """What is finished there already, or the shards that are missing; the same on all ranks."""
    agreed: list[Any] = [None, None]
    if process.rank == 0:
        finished = open_output(out, out / "work", out / MANIFEST, settings)
        agreed = [finished, [shard for shard, name in enumerate(names) if not (out / name).exists()]]
    dist.broadcast_object_list(agreed)
    return agreed[0], agreed[1]


def _grade_shards(teacher: Teacher, source: PairsFile, parts: dict[int, Path], hidden: bool, process: Process) -> None:
    schema = scores_schema(source.levels.count, teacher.hidden_size if hidden else None)
    total = sum(source.shard_rows[shard] for shard in parts)

    def read(shard: int) -> tuple[pa.Table, dict[str, list[list[int]]]]:
        pairs = source.read_shard(shard)
        return pairs, teacher.tokenize(pairs["query"].to_pylist(), pairs["title"].to_pylist())

    def write(pairs: pa.Table, tokens: dict[str, list[list[int]]], path: Path) -> None:
        graded = teacher.grade_tokens(tokens, hidden=hidden)
        columns = [pairs["query_id"], pairs["item_id"], fixed_size_lists(graded.probabilities)]
        columns += [fixed_size_lists(graded.hidden)] if graded.hidden is not None else []
        pq.write_table(pa.table(columns, schema=schema), path, **WRITTEN)

    with Progress("grading", total=total, unit="pairs", shown=process.rank == 0) as progress:  # ranks have as many each
        for path, (pairs, tokens) in zip(parts.values(), _one_ahead(read, parts), strict=True):
            build_if_absent(path, partial(write, pairs, tokens))
            progress.update(pairs.num_rows)


def _one_ahead(read: Callable[[int], Read], shards: Iterable[int]) -> Iterator[Read]:
    """What `read` gives of each shard; the next one is read while the last one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Read] | None = None
        for shard in shards:
            ready, coming = coming, thread.submit(read, shard)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _describe(source: PairsFile, out: Path, names: list[str]) -> dict[str, Any]:
    """What the manifest tells of finished parts."""
    level_grades = source.level_grades()
    judged: list[tuple[np.ndarray, ...]] = []
    for shard, name in enumerate(names):
        pairs = source.read_shard(shard, ["relevance", "query_id", "split"])
        known = pairs["relevance"].is_valid().to_numpy()
        scored = probabilities(read_parquet(out / name, ["probabilities"]))
        columns = (pairs[column].to_numpy(zero_copy_only=False)[known] for column in ("relevance", "query_id", "split"))
        judged.append((scored[known], *columns))
    scored, grade, query, split = (np.concatenate(column) for column in zip(*judged, strict=True))
    agreement = {
        name: relevance_metrics(
            scored[split == name],
            grade[split == name].astype(np.float32),
            query[split == name],
            boundaries=source.levels.boundaries,
            level_grades=level_grades,
        )
        for name in SPLITS
    }
    schema = pq.read_schema(out / names[0])
    return {
        "boundaries": source.levels.boundaries,
        "level_grades": level_grades.tolist(),
        "rows": source.rows,
        "files": names,
        "hidden_size": schema.field("hidden").type.list_size if "hidden" in schema.names else None,
        "agreement": agreement,
    }


@record
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, type=unambiguous, help="folder in Hugging Face layout")
    parser.add_argument("--pairs", required=True, type=unambiguous, help="file of pairs")
    parser.add_argument("--out", required=True, type=unambiguous, help="folder to write; an unfinished job there is finished")
    parser.add_argument("--hidden", action="store_true", help="write pooled hidden states too")
    parser.add_argument("--prompt", type=unambiguous, default=PROMPT, help="prompt file of a causal model")
    for name, field in TeacherOptions.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=field.default, help=field.description)
    check_arguments(argv)
    given = vars(parser.parse_args(argv))
    options = validate_section(TeacherOptions, {name: given.pop(name) for name in TeacherOptions.model_fields}, "teach")
    # ranks wait at the end for the slowest, which may have a whole part more to do
    with process_group(timeout=timedelta(days=1)) as process, job_lock(given["out"], process.rank):
        manifest = teach(**given, process=process, options=options)
        if process.rank == 0:
            print(f"{given['out']}: {manifest['rows']:,} pairs")
            for split, measures in manifest["agreement"].items():
                shown = ", ".join(f"{name} {value:.3f}" for name, value in measures.items() if isinstance(value, float))
                print(f"agreement with {measures['pairs']:,} grades, {split}: {shown or 'not measurable'}")


if __name__ == "__main__":
    run_rank(main)
