"""The directory of a training run: begun once, and gone on with by the same configuration alone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import MANIFEST as SAMPLES
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import Process
from prectr_torchrec.runs.layout import CONFIG, is_unfinished, load_run
from prectr_torchrec.runs.trackers import TRACKERS
from prectr_torchrec.runs.workspace import remove, replace_text, replacing
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import keep_settings

MAY_CHANGE = (
    "timeout",
    "reader_timeout",
    "on_bad_loss",
    "max_loss",
    "max_skipped",
    "keep_checkpoints",
    "async_checkpoints",
    "compile",
)
"""Settings of `train` that another start of a run may have otherwise: they change how it is run, and not, but for
rounding, what it makes."""


def open_run_directory(config: RunConfig, data: Path, run: Path, process: Process) -> None:
    """Makes a run directory, with the samples' tokenizer and manifest, unless it is there; collective.

    Raises:
        ConfigError: it was started with another configuration.
    """
    if process.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        written = run / CONFIG
        begun = written.exists()
        if not begun or is_unfinished(run):
            if begun and written.read_bytes() != dump_config(config).encode():
                print(
                    f"note: {run} was started with another configuration and has no checkpoint; it is begun anew",
                    file=sys.stderr,
                )
                remove(run / TRACKERS)
            remove(run / TOKENIZER)
            with replacing(run / TOKENIZER) as tokenizer:
                shutil.copytree(data / TOKENIZER, tokenizer)
                if config.model.encodes:
                    keep_settings(config.text, tokenizer)
            with replacing(run / SAMPLES) as samples:
                shutil.copyfile(data / SAMPLES, samples)
            replace_text(written, dump_config(config))
    dist.barrier()
    started = load_run(run)
    same = {"trackers", *(f"train.{name}" for name in MAY_CHANGE)}
    different = differences(started.model_dump(mode="json"), config.model_dump(mode="json"))
    if changed := "; ".join(difference for difference in different if difference.split(":")[0] not in same):
        raise ConfigError(f"{run} was started with another configuration ({changed}); use it or another --run")


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two trees of plain values differ: `key.key: old then, new now`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old!r} then, {new!r} now"
