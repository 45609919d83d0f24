"""`prectr baseline`: fits a baseline on prepared samples and measures it exactly as `prectr evaluate` measures a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from prectr_torchrec.baselines.samples import BaselineConfig, Samples
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig, validate_section
from prectr_torchrec.evaluation.evaluate import evaluate
from prectr_torchrec.evaluation.predictions import HIDDEN, Rows, oracle_columns
from prectr_torchrec.evaluation.scoring import default_split
from prectr_torchrec.runs.layout import BASELINE, CHECKPOINTS, CONFIG
from prectr_torchrec.runs.workspace import replace_text, write_json
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import only_local

Kind = Literal["trees", "mixed"]


class Scorer(Protocol):
    """A fitted baseline."""

    def score(self, samples: Samples, split: str, *, hide_grades: bool = False) -> Iterator[Rows]: ...


@only_local
@writes_folder("run")
def run_baseline(
    kind: Kind,
    data: Path,
    run: Path,
    *,
    score: Sequence[Path] = (),
    oracle: Path | None = None,
    refit: bool = False,
    hide_grades: bool = False,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Fits a baseline and leaves a run directory that `prectr report` reads: predictions and measures of each scored split.

    Args:
        kind: `trees` or `mixed`.
        data: prepared folder with a train split.
        run: run directory to write, which may be there from an earlier baseline.
        score: prepared folders, of which `test` is scored, or `candidates` where there is no test; none: `data`.
        oracle: as of `evaluate`; nothing but the measures reads it.
        refit: train on the validation split too.
        hide_grades: score everything once more as if no candidate had a grade, to `...-<split>-grades-hidden...`.
        overrides: `key=value` of the baseline's settings.

    Returns:
        The measures of each folder, with grades hidden after the others.

    Raises:
        ConfigError: an unknown setting or a wrong value.
        ValueError: folders that cannot be used, or `run` holds a trained ranker.
    """
    kind_config, kind_scorer = _load(kind)
    config = validate_section(kind_config, _parse(overrides), "--set")
    samples = Samples.open(data)
    scored = [(Samples.open(folder, samples.data), default_split(folder)) for folder in score or (data,)]
    _check(run, samples, scored, oracle)
    splits = ("train", "validation") if refit else ("train",)
    scorer = kind_scorer(samples, splits, config)
    _write_run(run, kind, samples.data, {"trained_on": splits, "settings": config.model_dump(mode="json")})
    results = []
    for folder, split in scored:
        for name, hidden in ((split, False), *[(f"{split}{HIDDEN}", True)] * hide_grades):
            measured = evaluate(
                scorer.score(folder, split, hide_grades=hidden),
                settings=samples.data,
                split=folder.folder / split,
                train=data / "train",
                predictions=run / f"predictions-{name}.parquet",
                oracle=oracle,
                grades="hidden" if hidden else "visible",
            )
            assert measured is not None, "one process is rank 0"
            results.append({"run": kind, "checkpoint": None, **measured})
            write_json(results[-1], run / f"metrics-{name}.json")
    return results


def _write_run(run: Path, kind: Kind, data: DataConfig, about: dict[str, Any]) -> None:
    """What `prectr report` reads of a run beside its measures."""
    run.mkdir(parents=True, exist_ok=True)
    replace_text(run / CONFIG, dump_config(RunConfig(name=kind, data=data)))
    replace_text(run / BASELINE, json.dumps({"kind": kind, **about}, indent=1))


def _load(kind: Kind) -> tuple[type[BaselineConfig], Callable[[Samples, Sequence[str], Any], Scorer]]:
    """Settings and scorer of a kind; what only one kind needs is imported for it alone."""
    if kind == "mixed":
        from prectr_torchrec.baselines.mixed_scorer import MixedConfig, MixedScorer

        return MixedConfig, MixedScorer
    try:
        from prectr_torchrec.baselines.trees import TreesConfig, TreesScorer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'prectr-torchrec[trees]'") from None
    return TreesConfig, TreesScorer


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: write it as key=value")
        values[key] = yaml.safe_load(value)
    return values


def _check(run: Path, samples: Samples, scored: Sequence[tuple[Samples, str]], oracle: Path | None) -> None:
    """Finds what is wrong before minutes of fitting."""
    if (run / CHECKPOINTS).exists():
        raise ValueError(f"{run}: holds the checkpoints of `prectr train`; choose another --run directory")
    for folder, split in ((samples, "train"), *scored):
        if not folder.has(split):
            raise ValueError(f"{folder.folder}: the split {split!r} is missing or empty; run `prectr prepare`")
    names = [split for _, split in scored]
    if len(set(names)) < len(names):
        raise ValueError(f"--score: two folders would write predictions-{names[0]}.parquet; use a --run directory for each")
    if oracle:
        oracle_columns(oracle)
