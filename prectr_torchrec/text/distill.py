"""`prectr distill`: a small text side learns relevance from a teacher's soft grades, then from grades.

One rank of the job: `torchrun -m prectr_torchrec.text.distill --config C --pairs FILE --teacher-scores DIR --out DIR`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import BaseModel
from torch.distributed.elastic.multiprocessing.errors import record

from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.text import DistillConfig, TextConfig
from prectr_torchrec.data import teacher_scores as scores_files
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.teacher_scores import read_scores_manifest, read_teacher_scores
from prectr_torchrec.data.tokenizer import load_tokenizer, train_tokenizer, write_document_frequency
from prectr_torchrec.data.tokens import tokenizer_digest
from prectr_torchrec.distributed.process import Process, process_group, run_rank
from prectr_torchrec.modules import TextEncoder, TextRelevance
from prectr_torchrec.runs.metrics_log import open_log
from prectr_torchrec.runs.workspace import apply_umask, build_if_absent, file_digest, folder_digest, open_output
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import job_lock
from prectr_torchrec.system.paths import check_arguments, only_local, unambiguous
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.distiller import Distiller
from prectr_torchrec.text.pair_data import PairData, teacher_targets
from prectr_torchrec.text.student import save_student
from prectr_torchrec.text.token_vectors import start_from_token_vectors

MANIFEST = "distill.json"
"""Written last: `measures` of the splits, `grades_from`, `parameters`, `level_grades` and the `settings`."""


@only_local
def distill(
    config: RunConfig,
    pairs: Path,
    out: Path,
    process: Process,
    *,
    teacher_scores: Sequence[Path] = (),
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Distils a student; collective. A folder that holds an unfinished one is gone on with.

    Args:
        config: the run; reads `distill`, `text`, `data.levels` and the relevance tower of `model`.
        pairs: file of pairs.
        out: result folder: encoder and tokenizer in Hugging Face layout, the relevance side, `distill.json`, `metrics.jsonl`.
        process: this rank.
        teacher_scores: folders of `prectr teach`, averaged; none: grades alone.
        tokenizer: folder to take the tokenizer from; None: that of `text.path`, or one trained on the pairs.

    Returns:
        What `distill.json` holds.

    Raises:
        ValueError: unusable pairs or scores, or `out` holds something else.
    """
    work, source = out / "work", PairsFile.open(pairs)
    source.check_levels(config.data.levels)
    given = tokenizer or (Path(config.text.path) if config.text.path else None)
    settings = _settings(config.distill, config.text, config.model, pairs, teacher_scores, given, process.world_size)
    table = source.read()
    teacher, hidden = _read_scores(config.distill.hidden_weight, config.data.levels, table, teacher_scores)
    answer: list[Any] = [_attempt(lambda: open_output(out, work, out / MANIFEST, settings)) if process.rank == 0 else None]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], ValueError):
        raise answer[0]
    if answer[0] is not None:
        return dict(answer[0])
    if process.rank == 0:
        build_if_absent(work / "tokenizer", lambda folder: _write_tokenizer(table, given, config.text.vocab_size, folder))
    dist.barrier()
    data = PairData(table, work / "tokenizer", config.text.query_tokens, config.text.title_tokens, process.device)
    torch.manual_seed(config.distill.seed)  # the same student on all ranks
    relevance = build_relevance(config, work / "tokenizer")
    if config.distill.token_vectors:
        start_from_token_vectors(_fresh_encoder(config.text, relevance), work / "tokenizer", Path(config.distill.token_vectors))
    relevance.to(process.device)
    log = partial(open_log, out, config.trackers, config.model_dump(mode="json"))
    distiller = Distiller(
        config.distill, config.data.levels, relevance, data, source.level_grades(), teacher, hidden, out, process, log
    )
    student = distiller.train()
    found = _describe(distiller, pairs, teacher_scores) | {"settings": settings}
    if process.rank == 0:
        shutil.copytree(work / "tokenizer", out, dirs_exist_ok=True)
        save_student(out, student, config.text, config.data.levels)
        apply_umask(out)
        build_if_absent(out / MANIFEST, lambda path: path.write_text(json.dumps(found, indent=1), encoding="utf-8"))
        shutil.rmtree(work)
    dist.barrier()
    return found


def _read_scores(
    hidden_weight: float, levels: Levels, pairs: pa.Table, scores: Sequence[Path]
) -> tuple[NDArray[np.float32] | None, NDArray[Any] | None]:
    """What `teacher_targets` gives, or nothing without scores."""
    if not scores:
        return None, None
    scored = read_teacher_scores(scores, levels=levels, hidden=hidden_weight > 0)
    if hidden_weight and "hidden" not in scored.column_names:
        raise ConfigError(
            f"distill.hidden_weight: {hidden_weight} needs hidden states of one teacher; teach with --hidden, or set 0"
        )
    return teacher_targets(pairs, scored)


def _fresh_encoder(text: TextConfig, relevance: TextRelevance) -> TextEncoder:
    encoder = relevance.interaction.encoder if relevance.interaction is not None else None
    if not isinstance(encoder, TextEncoder) or text.path:
        raise ConfigError("distill.token_vectors: for a fresh transformer only; this student starts from text.path or has none")
    return encoder


def _describe(distiller: Distiller, pairs: Path, scores: Sequence[Path]) -> dict[str, Any]:
    """What `distill.json` tells of the student; collective."""
    train = distiller.data.split == "train"
    measures = {}
    for split in ("validation", "test"):
        rows = distiller.rows(split)
        measures[split] = distiller.measure(rows, distiller.predict(rows))
    return {
        "measures": measures,
        "grades_from": {
            "pairs": str(pairs),
            "train_pairs_graded": int(distiller.graded[train].sum()),
            "train_pairs_scored": int(distiller.scored[train].sum()),
            "teachers": {str(folder): read_scores_manifest(folder)["agreement"] for folder in scores},
        },
        "parameters": sum(p.numel() for p in distiller.relevance.parameters()),
        "level_grades": distiller.level_grades.tolist(),
    }


def _attempt(work: Callable[[], Any]) -> Any:
    """The outcome, or the user's mistake as a value, so that it reaches all ranks."""
    try:
        return work()
    except ValueError as error:
        return error


def _write_tokenizer(pairs: pa.Table, given: Path | None, vocab_size: int, folder: Path) -> None:
    """Trained on the train queries' pairs, whose titles are also counted for document frequencies."""
    train = pairs.filter(pairs["split"].to_numpy(zero_copy_only=False) == "train")
    queries, titles = (sorted(set(train[name].to_pylist())) for name in ("query", "title"))
    if given is None:
        train_tokenizer([*queries, *titles], folder, vocab_size)
    else:
        load_tokenizer(given).save_pretrained(str(folder))
    write_document_frequency(titles, folder)


def _settings(
    distill: DistillConfig,
    text: TextConfig,
    model: BaseModel,
    pairs: Path,
    scores: Sequence[Path],
    tokenizer: Path | None,
    world_size: int,
) -> dict[str, Any]:
    """What the student depends on."""
    begins = {"text.path": text.path, "distill.token_vectors": distill.token_vectors}
    for folder in scores:
        read_scores_manifest(folder)
    return {
        "distill": distill.model_dump(mode="json"),
        "text": text.model_dump(mode="json"),
        "model": model.model_dump(mode="json", include={"text", "match", "relevance_tower", "dropout"}),
        "pairs": file_digest(pairs),
        "teacher_scores": [file_digest(folder / scores_files.MANIFEST) for folder in scores],
        "tokenizer": tokenizer_digest(tokenizer) if tokenizer else None,
        **{f"files of {name}": folder_digest(Path(path)) for name, path in begins.items() if path and Path(path).is_dir()},
        "ranks": world_size,
    }


@record
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file or the name of a shipped configuration")
    parser.add_argument("--pairs", required=True, type=unambiguous, help="file of pairs")
    parser.add_argument("--teacher-scores", action="append", default=[], type=unambiguous, help="folder of `prectr teach`")
    parser.add_argument("--out", required=True, type=unambiguous, help="result folder; an unfinished one is gone on with")
    parser.add_argument("--tokenizer", type=unambiguous, help="folder of a tokenizer, such as that of prepared samples")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    check_arguments(argv)
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    with process_group(config.train.device) as process, job_lock(arguments.out, process.rank):
        found = distill(
            config,
            arguments.pairs,
            arguments.out,
            process,
            teacher_scores=arguments.teacher_scores,
            tokenizer=arguments.tokenizer,
        )
        if process.rank == 0:
            test = {name: value for name, value in found["measures"]["test"].items() if value is not None}
            print(f"{arguments.out}: {found['parameters']:,} parameters; test queries: {json.dumps(test)}")


if __name__ == "__main__":
    run_rank(main)
