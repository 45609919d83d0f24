"""Starts a run from weights of another one: `train.init_from`."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.checkpoints.names import parameter_name, select
from prectr_torchrec.checkpoints.resharding import check_loadable
from prectr_torchrec.checkpoints.safe_reader import load_tensors, read_metadata
from prectr_torchrec.config.tables import FeatureConfig
from prectr_torchrec.config.train import InitFromConfig
from prectr_torchrec.data.schema import TOKENIZER, check_findings, load_manifest
from prectr_torchrec.data.tokens import tokenizer_digest
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.system.errors import ConfigError


def init_from(
    settings: InitFromConfig,
    model: DistributedModelParallel,
    features: dict[str, FeatureConfig],
    run: Path,
    only: Collection[str] | None = None,
) -> None:
    """Loads the weights of chosen tables and towers from another run, on whatever ranks and sharding it had; collective.

    Managed tables come with their ids. The optimizers' states stay as they are, those of a beginning.

    Args:
        only: names of what is loaded once more of all that was; None: everything, which is said.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ConfigError: a pattern matches nothing, the other run has no such parameter or one of another shape, or its text was cut
            into other tokens.
        ValueError: a file of the checkpoint is broken.
    """
    source = Path(settings.run)
    load_run(source)  # says so if it is none
    state = model.state_dict()
    chosen = select(map(parameter_name, state), settings.include, settings.exclude, "train.init_from")
    if only is not None:
        chosen &= set(only)
    if not chosen:
        return
    checkpoints = Checkpoints(source)
    path = checkpoints.path(settings.checkpoint)
    checkpoints.check(path)
    part = {"model": {key: value for key, value in state.items() if parameter_name(key) in chosen}}
    check_loadable(read_metadata(path), part, path)
    _check_tokens(chosen, features, source, run)
    _check_samples(chosen, source, run)
    load_tensors(part, path)
    model.load_state_dict(state)
    if dist.get_rank() == 0 and only is None:
        print(
            f"note: {len(chosen)} of {len(set(map(parameter_name, state)))} tables and parameters are those of {path}",
            file=sys.stderr,
        )


def _check_samples(chosen: set[str], source: Path, run: Path) -> None:
    """Rows of ids that are read otherwise are nobody's; what other counters mean is learned again, and said."""
    source_manifest = load_manifest(source)
    if any(name.startswith("tables.") for name in chosen):
        check_findings(run, source, {"id_kinds": source_manifest["id_kinds"]})
    now = load_manifest(run)["examination"]
    if source_manifest["examination"] != now and dist.get_rank() == 0:
        difference = f"examined by {now}, in the samples of {source} by {source_manifest['examination']}"
        print(f"note: train.init_from: positions are {difference}", file=sys.stderr)


def _check_tokens(chosen: set[str], features: dict[str, FeatureConfig], source: Path, run: Path) -> None:
    token_tables = {f"tables.{f.table}" for name, f in features.items() if (f.column or name).endswith("_tokens")}
    by_token = (".encoder.", ".taste.title.", "relevance.match.")
    of_tokens = sorted(n for n in chosen if n in token_tables or any(part in n for part in by_token))
    if of_tokens and tokenizer_digest(source / TOKENIZER) != tokenizer_digest(run / TOKENIZER):
        raise ConfigError(
            f"train.init_from: {of_tokens[0]} has a row for each token, and the tokens of {source} are others; exclude "
            f"{', '.join(of_tokens)}, or prepare the data with its tokenizer (text.path)"
        )
