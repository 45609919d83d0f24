"""`prectr fuse`: rankers that were trained apart become one run, their logits weighted by what the validation split says."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.checkpoints.resharding import check_loadable
from prectr_torchrec.checkpoints.safe_reader import load_tensors, read_metadata
from prectr_torchrec.checkpoints.stateful import RandomStates
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.kinds import FusedConfig, Member, MixedConfig, RankerSection
from prectr_torchrec.config.run import RunConfig, validate_section
from prectr_torchrec.config.score import CLICK_ALONE
from prectr_torchrec.config.tables import FeatureConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import MANIFEST, TOKENIZER, check_findings, load_manifest
from prectr_torchrec.data.tokens import tokenizer_digest
from prectr_torchrec.distributed.process import Process, process_group, run_rank
from prectr_torchrec.modules import Examination, LabelProbability
from prectr_torchrec.modules.rankers.fused import Fused
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import job_lock
from prectr_torchrec.system.paths import check_arguments, unambiguous
from prectr_torchrec.training.run_directory import open_run_directory
from prectr_torchrec.training.sharded import build_sharded, evaluate_batches
from prectr_torchrec.training.validation import ValidationMetrics

_FIT = "validation"


class FusedRun(NamedTuple):
    """What was made."""

    weights: dict[str, float]
    """Of each member's logit."""
    bias: float
    figures: dict[str, float | None]
    """Of the validation split, which weights and bias were fitted on."""


def fuse(runs: Mapping[str, Path], data: Path, out: Path, process: Process, checkpoint: str = "best") -> FusedRun:
    """Makes a run of kind `fused`; collective.

    Where the samples have sums of effects, members of kind `mixed` infer these from them, in place of the rows that they learned.

    Args:
        runs: member -> its run directory.
        data: prepared folder with a validation split, that no member learned from.
        out: run directory to make.
        process: this rank.
        checkpoint: of each member, as of `evaluate`.

    Raises:
        ConfigError: the runs do not fit together, or are of rankers that cannot be members.
        ValueError: the samples do not fit the runs, or their validation split has no clicks of both classes.
    """
    config = fused_config(runs, data)
    for run in runs.values():
        check_findings(data, run, load_manifest(run))
        if tokenizer_digest(run / TOKENIZER) != tokenizer_digest(data / TOKENIZER):
            raise ConfigError(f"{run}: its tokens are not those of {data}; prepare the data with its tokenizer (text.path)")
    open_run_directory(config, data, out, process)
    model, optimizers, _ = build_sharded(config, out, process, kept=True)
    fused = cast(Fused, model.module.model)
    fused.start_from(load_manifest(out)["examination"])
    for name, run in runs.items():
        _load_member(model, name, run, checkpoint)
    reader = SearchReader(config, data, _FIT, out / TOKENIZER, rank=process.rank, world_size=process.world_size)
    pipeline = TrainPipelineSparseDist(model, optimizers.combined, process.device)
    batches = agree_on_batches(reader.num_batches(0))
    with torch.no_grad():
        fitted = _fit(fused, pipeline, model, reader, batches, data)
        fused.weights.copy_(fitted[:-1])
        fused.bias.copy_(fitted[-1])
    fused.reports_parts = False
    measured = ValidationMetrics(process.device)
    for batch, report in evaluate_batches(pipeline, model, reader, batches):
        measured.update(batch, logged=report.logged["click"], reference=report.ranking["click"])
    validation = measured.compute()
    parts = {"model": model, "optimizer": optimizers, "random": RandomStates(process.device)}
    Checkpoints(out).save(parts, {"step": 0}, validation.loss)
    weights = dict(zip(runs, fused.weights.tolist(), strict=True))
    return FusedRun(weights, fused.bias.item(), validation.figures)


def fused_config(runs: Mapping[str, Path], data: Path) -> RunConfig:
    """The configuration of the run that is made of others.

    Raises:
        ConfigError: as of `fuse`.
    """
    manifest = load_manifest(data)
    samples = validate_section(DataConfig, manifest["settings"]["data"], str(data / MANIFEST))
    configs = {name: load_run(run) for name, run in runs.items()}
    first = next(iter(configs.values()))
    members: dict[str, Member] = {}
    tables: dict[str, Any] = {}
    features: dict[str, FeatureConfig] = {}
    text: TextConfig | None = None
    for name, config in configs.items():
        run = runs[name]
        if isinstance(config.model, FusedConfig):
            raise ConfigError(f"{run}: a fused ranker is no member of another one; name the runs that it was made of")
        section, read = _with_sums(config.model, config.features, samples)
        for key, mine, others in (("tables", config.tables, tables), ("features", read, features)):
            if both := sorted(mine.keys() & others.keys()):
                raise ConfigError(
                    f"{run}: {key}.{both[0]} is in another member too, with other weights; train one with another name for it"
                )
        used = {feature.table for feature in read.values()}
        tables |= {table: about for table, about in config.tables.items() if table in used}
        features |= read
        members[name] = Member(model=section, features=list(read))
        if section.encodes:
            text = config.text
    tree = first.model_dump(mode="json") | {
        "name": "fused",
        "data": samples.model_dump(mode="json"),
        "text": (text or first.text).model_dump(mode="json"),
        "tables": {name: table.model_dump(mode="json") for name, table in tables.items()},
        "features": {name: feature.model_dump(mode="json") for name, feature in features.items()},
        "model": {"kind": "fused", "members": {name: member.model_dump(mode="json") for name, member in members.items()}},
        "losses": {},
        "score": CLICK_ALONE,
    }
    return validate_section(RunConfig, tree, f"the runs {', '.join(map(str, runs.values()))}")


def _with_sums(
    section: RankerSection, features: dict[str, FeatureConfig], samples: DataConfig
) -> tuple[RankerSection, dict[str, FeatureConfig]]:
    """A ranker of mixed effects that reads the sums that the samples have, without the rows that these stand for."""
    if not isinstance(section, MixedConfig) or not samples.effects:
        return section, features
    rows = {f"{who}_effect" for who in samples.effects}
    section = section.model_copy(update={"posterior": dict(samples.effects)})
    return section, {name: feature for name, feature in features.items() if name not in rows}


def _load_member(model: DistributedModelParallel, name: str, run: Path, checkpoint: str) -> None:
    """Loads a member's weights and tables in place; collective."""
    config = load_run(run)
    checkpoints = Checkpoints(run)
    path = checkpoints.path(checkpoint)
    checkpoints.check(path)
    state, prefix = model.state_dict(), f"model.members.{name}."
    own = {f"model.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    own |= {key: value for key, value in state.items() if key.startswith("embeddings.") and key.split(".")[-2] in config.tables}
    part = {"model": own}
    check_loadable(read_metadata(path), part, path)
    load_tensors(part, path)
    model.load_state_dict(state)


def _fit(
    fused: Fused,
    pipeline: TrainPipelineSparseDist[Any, Any],
    model: DistributedModelParallel,
    reader: SearchReader,
    batches: int,
    data: Path,
) -> Tensor:
    """(members + 1,) float64, weights and bias of the least log loss at the logged positions; the same on all ranks."""
    fused.reports_parts = True
    names = [f"{name}_logit" for name in fused.members]
    rows: list[Tensor] = []
    for batch, report in evaluate_batches(pipeline, model, reader, batches):
        click, weight, _ = batch.labels()["click"]
        logits = torch.stack([report.parts[name] for name in names], dim=1)  # (C, members)
        columns = [logits, batch["candidate_position"].unsqueeze(1), click.unsqueeze(1)]
        rows.append(torch.cat([column.double() for column in columns], dim=1)[weight > 0].cpu())
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, torch.cat(rows) if rows else torch.zeros(0, len(names) + 2, dtype=torch.float64))
    table = torch.cat(gathered)
    click = table[:, -1]
    if not 0 < click.sum() < len(click):
        raise ValueError(f"{data / _FIT}: weights are fitted on clicked and other candidates, and it has one kind alone")
    return fit_weights(table[:, :-2], table[:, -2].long(), click, fused.position)


@torch.enable_grad()
def fit_weights(logits: Tensor, position: Tensor, click: Tensor, examination: Examination | None) -> Tensor:
    """(members + 1,) float64 weights and bias of the least log loss.

    Args:
        logits: (n, members) float64, the position at its reference.
        position: (n,) int64, those that were logged.
        click: (n,) float64, 0 or 1.
        examination: by position, taken as it is; None: positions have no part.
    """
    inputs = torch.cat([logits, torch.ones(len(logits), 1, dtype=torch.float64)], dim=1)
    solution = torch.tensor([*[1 / logits.shape[1]] * logits.shape[1], 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)
    examine = copy.deepcopy(examination).cpu().double() if examination is not None else None

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = LabelProbability.from_logit(inputs @ solution)
        found = examine(found, position) if examine is not None else found
        loss = -(click * found.log_yes + (1 - click) * found.log_no).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job on this rank; `argv` as on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--member", action="append", required=True, type=unambiguous, help="run directory of a trained ranker")
    parser.add_argument("--data", required=True, type=unambiguous, help="prepared folder")
    parser.add_argument("--run-dir", "--run", required=True, type=unambiguous, help="run directory to make")
    parser.add_argument("--checkpoint", default="best", help="of each member")
    check_arguments(argv)
    arguments = parser.parse_args(argv)
    config = load_run(arguments.member[0])
    with (
        process_group(config.train.device, timedelta(seconds=config.train.timeout)) as process,
        job_lock(arguments.run_dir, process.rank),
    ):
        made = fuse(members_of(arguments.member), arguments.data, arguments.run_dir, process, arguments.checkpoint)
        if process.rank == 0:
            weights = ", ".join(f"{name} {weight:.3f}" for name, weight in made.weights.items())
            figures = ", ".join(f"{name} {value:.4f}" for name, value in made.figures.items() if value is not None)
            print(f"weights: {weights}; bias {made.bias:.3f}\nvalidation: {figures}\nrun: {arguments.run_dir}")


def members_of(runs: Sequence[Path]) -> dict[str, Path]:
    """Each run by the name of its configuration.

    Raises:
        ConfigError: a run has the name of another one, or one that is no name of a module.
    """
    found: dict[str, Path] = {}
    for run in runs:
        name = load_run(run).name
        if name in found:
            raise ConfigError(f"{run}: its configuration has the name {name!r}, as that of {found[name]}")
        if not name.isidentifier():
            raise ConfigError(f"{run}: its configuration's name {name!r} must be of letters, digits and _ to be a member's")
        found[name] = run
    return found


if __name__ == "__main__":
    run_rank(main)
