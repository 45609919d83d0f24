"""What `fuzz.py --damaged` damages: small runs, configurations and Parquet files, and the functions behind the commands."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from damage import Material
from pair_files import write_pairs, write_teacher_scores
from raw_logs import random_log, write_log
from small_run import small_config, write_small_data

from prectr_torchrec import Ranker
from prectr_torchrec.checkpoints.inspection import inspect_checkpoint
from prectr_torchrec.config.data import DataConfig, Levels
from prectr_torchrec.config.files import dump_config, load_config
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.parquet_files import WRITTEN
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.teacher_scores import read_teacher_scores
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.index import index_titles
from prectr_torchrec.text.teacher import PROMPT, load_prompt
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003}]}


def _make_run(folder: Path) -> None:
    config = small_config(train=STAGES)
    write_small_data(folder / "data", config, requests=16)
    _train(folder)
    _evaluate(folder)


def _train(folder: Path) -> None:
    """Once trained, to be resumed: there is nothing left to do."""
    run = folder / "run"
    config = load_run(run) if run.exists() else small_config(train=STAGES)
    with process_group("cpu") as process:
        Trainer(config, folder / "data", run, process).train()


def _evaluate(folder: Path) -> Any:
    evaluate(["--run", str(folder / "run"), "--data", str(folder / "data")])
    return pq.read_table(folder / "run" / "predictions-test.parquet").drop_columns(["relevance"]).to_pylist()


def _export(folder: Path) -> Any:
    export(folder / "run", folder / "exported")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "data" / "test").glob("*.parquet"))])
    return Ranker.load(folder / "exported").score(samples).to_pylist()


def _explain(folder: Path) -> None:
    first = pq.read_table(folder / "data" / "test" / "part-00000.parquet", columns=["request_id"])["request_id"][0].as_py()
    explain(folder / "run", folder / "data", first)


def _report(folder: Path) -> None:
    write_report(folder / "report.html", {"run": folder / "run"})


def _epoch(folder: Path) -> str:
    """A digest of all batches of an epoch."""
    reader = SearchReader(small_config(), folder / "data", "train", folder / "data" / TOKENIZER)
    digest = hashlib.sha256()
    for batch in reader.epoch(0):
        for tensor in (*batch.packed.values(), *batch.texts.values(), batch.request_features.values()):
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def _pairs(folder: Path) -> Any:
    pairs = PairsFile.open(folder / "pairs.parquet")
    return [pairs.read().to_pydict(), pairs.read_shard(0).to_pydict(), pairs.level_grades().tolist()]


def _scores(folder: Path) -> Any:
    return read_teacher_scores([folder / "scores"], levels=Levels()).to_pydict()


def _make_texts(folder: Path) -> None:
    (folder / "small.yaml").write_text(dump_config(small_config()), encoding="utf-8")
    (folder / "prompt.yaml").write_bytes(PROMPT.read_bytes())


RAW = DataConfig(
    columns={
        "users": {"age": "number"},
        "requests": {"hour": "number"},
        "items": {"price": "number", "image": {"vector": 2}},
        "impressions": {"bm25": "number"},
    }
)


def _make_raw(folder: Path) -> None:
    raw = random_log(requests=40)
    raw["users"] = [{"user_id": user, "age": 7.0} for user in sorted({row["user_id"] for row in raw["impressions"]})]
    for number, item in enumerate(raw["items"]):
        item |= {"price": float(number), "image": [0.5, float(number)]}
    for number, event in enumerate(raw["impressions"]):
        event |= {"hour": float(event["request_id"] % 24), "bm25": float(number % 7)}
    write_log(raw, folder / "raw")


def _prepare(folder: Path) -> None:
    prepare(RAW, TextConfig(vocab_size=300), folder / "raw", folder / "out")


def _make_samples(folder: Path) -> None:
    """One file a split: of two files of as many requests one in place of the other would not be noticed."""
    write_small_data(folder / "data", small_config(), requests=40)
    first, second = sorted((folder / "data" / "train").glob("*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(first), pq.read_table(second)]), first, row_group_size=16, **WRITTEN)
    second.unlink()


def _make_pairs(folder: Path) -> pa.Table:
    pairs = write_pairs(folder / "pairs.parquet", queries=30)
    _with_checksums(folder)
    return pairs


def _make_scores(folder: Path) -> None:
    write_teacher_scores(folder / "scores", _make_pairs(folder), hidden=4)
    _with_checksums(folder)


def _with_checksums(folder: Path) -> None:
    """As the product writes them; the tests' builders do not care."""
    for path in sorted(folder.rglob("*.parquet")):
        pq.write_table(pq.read_table(path), path, **WRITTEN)


def _make_export(folder: Path) -> None:
    _make_run(folder)
    _export(folder)
    items = pq.read_table(next((folder / "data" / "test").glob("*.parquet")))["candidate_title"].combine_chunks().flatten()
    pq.write_table(pa.table({"title": items}), folder / "items.parquet")
    index_titles(Ranker.load(folder / "exported"), folder / "exported", folder / "items.parquet")


def _rank(folder: Path, **options: Any) -> Any:
    samples = pq.read_table(folder / "data" / "test")
    return Ranker.load(folder / "exported", **options).score(samples).to_pylist()


MATERIALS = {
    "exports": Material(
        _make_export,
        ("exported/*.*", "exported/tables/*", "exported/text/*"),
        {"in memory": _rank, "on disk": lambda folder: _rank(folder, resident=0)},
        ("in memory", "on disk"),
    ),
    "runs": Material(
        _make_run,
        ("run/*.*", "run/checkpoints/*.json", "run/checkpoints/step-*/*", "run/checkpoints/step-*/.metadata", "run/tokenizer/*"),
        {
            "inspect": lambda folder: inspect_checkpoint(folder / "run"),
            "export": _export,
            "evaluate": _evaluate,
            "explain": _explain,
            "report": _report,
            "resume": _train,
        },
        ("export", "evaluate"),
    ),
    "configs": Material(
        _make_texts,
        ("*.yaml",),
        {
            "configuration": lambda folder: load_config(folder / "small.yaml"),
            "prompt": lambda folder: load_prompt(folder / "prompt.yaml"),
        },
    ),
    "samples": Material(
        _make_samples,
        ("data/train/*",),
        {"reader": _epoch},
        ("reader",),
    ),
    "raw": Material(_make_raw, ("raw/*",), {"prepare": _prepare}),
    "pairs": Material(_make_pairs, ("*.parquet",), {"pairs": _pairs}, ("pairs",)),
    "scores": Material(_make_scores, ("scores/*",), {"scores": _scores}),
}
