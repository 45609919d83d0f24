"""Checkpoints in a run directory: written aside, published whole, checked when they are read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from prectr_torchrec.checkpoints.best import LOWEST, ValidationLoss, choose_best
from prectr_torchrec.checkpoints.checksums import ChecksumWriter
from prectr_torchrec.checkpoints.manifest import (
    METADATA,
    PROGRESS,
    RUN,
    broken_files,
    describe_files,
    describe_run,
    write_manifest,
)
from prectr_torchrec.checkpoints.resharding import check_loadable, saving_ranks
from prectr_torchrec.checkpoints.row_blocks import RowBlockPlanner
from prectr_torchrec.checkpoints.safe_reader import load_tensors, read_metadata
from prectr_torchrec.checkpoints.staging import HostCopy
from prectr_torchrec.checkpoints.stateful import Lazy, Parts
from prectr_torchrec.runs.layout import CHECKPOINTS, checkpoint_index, checkpoint_names, checkpoint_path, write_checkpoint_index
from prectr_torchrec.runs.workspace import remove
from prectr_torchrec.system.plain_files import read_json

_T = TypeVar("_T")


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Each checkpoint is a folder of Distributed Checkpoint files (the parts of a job that have a state) with
    `progress.json` (schedule and data position), `run.json` and `files.json` (size and checksum of the run's files and its own).
    It is renamed to its final name when it is complete on all ranks, so that a killed save is never taken for one. `index.json`
    names the last and the best.

    Args:
        run: run directory.
        keep: how many of the latest are kept, beside the best.
        in_background: writes while training goes on, from a copy in host memory.
    """

    def __init__(self, run: Path, keep: int = 1, in_background: bool = False) -> None:
        self._run, self.folder = run, run / CHECKPOINTS
        self._keep = keep
        self._background = _Background() if in_background else None
        self._checked: set[Path] = set()

    def index(self) -> dict[str, Any]:
        """As `runs.checkpoint_index`."""
        return checkpoint_index(self._run)

    def path(self, which: str) -> Path:
        """As `runs.checkpoint_path`."""
        return checkpoint_path(self._run, which)

    def progress(self) -> dict[str, Any]:
        """What was saved as progress with the last checkpoint, empty before the first one."""
        return dict(read_json(self.path("last") / PROGRESS)) if self.index() else {}

    def save(
        self,
        parts: Parts,
        progress: dict[str, Any],
        validation: ValidationLoss | None = None,
    ) -> None:
        """Saves on all ranks; collective. In the background one save is under way at a time: the next one waits for it.

        Args:
            parts: what is saved.
            progress: plain values; `progress["step"]` names the checkpoint.
            validation: where it was measured after this step; the best checkpoint is chosen by it (`best`).

        Raises:
            CheckpointException, OSError: this save, or the one in the background before it, failed; what was saved earlier stays.
        """
        self.wait()
        name = f"step-{progress['step']:09d}"
        temporary = self.folder / f".{name}.saving"
        if dist.get_rank() == 0:
            for left in self.folder.glob(".step-*"):  # of a killed or failed save
                remove(left)
            temporary.mkdir(parents=True)
        dist.barrier()
        state, writer = _state(parts), ChecksumWriter(temporary)
        position = json.dumps(progress, indent=1)  # now: it moves on while the files are written

        def publish(group: dist.ProcessGroup | None) -> None:
            self._publish(writer, group, name, position, validation)

        if self._background is None:
            dcp.save(state, storage_writer=writer, planner=RowBlockPlanner())
            publish(None)
        else:
            self._background.save(state, writer, publish)

    def wait(self) -> None:
        """Until nothing is being written any more; to be called at the end.

        Raises:
            CheckpointException, OSError: the save in the background failed.
        """
        if self._background is not None:
            self._background.wait()

    def use_newest_whole(self) -> None:
        """Makes the newest checkpoint whose files are as they were written the last one; sets aside, with a note, what is broken
        and newer. Collective.

        Raises:
            ValueError: there are checkpoints, and none is whole; names what is wrong.
        """
        index = self.index()
        older = [name for name in checkpoint_names(self._run) if name < index.get("last", "")]
        candidates = [index["last"], *reversed(older)] if index else []
        broken: dict[str, list[str]] = {}
        for name in candidates:
            if not (found := self._broken(self.folder / name)):
                break
            broken[name] = found
        dist.barrier()  # all have looked
        if broken and dist.get_rank() == 0:
            self._set_aside(broken, index, candidates)
        if broken and len(broken) == len(candidates):
            problems = "; ".join(problem for found in broken.values() for problem in found)
            raise ValueError(f"{self._run}: no checkpoint can be read: {problems}; restore the files or start another --run")
        dist.barrier()

    def load(self, which: str, parts: Parts) -> None:
        """Loads into sharded parts, on as many ranks as saved them or others; collective.

        Random states go on where they were on as many ranks of the same kind of device only.

        Args:
            which: as of `runs.checkpoint_path`.
            parts: `model`, and what else of the checkpoint is wanted.

        Raises:
            ValueError: a file is truncated, corrupt or missing; names it.
            ConfigError: it cannot be moved to this sharding; nothing was read.
        """
        path = self.path(which)
        self.check(path)
        saved = read_metadata(path)
        check_loadable(saved, _state(parts), path)
        for part in parts.values():
            if isinstance(part, Lazy):
                part.init_state()
        state = _state(parts)
        if "random" in state and not _has_random_states(saved, state["random"]):
            del state["random"]
        load_tensors(state, path)
        for name, loaded in state.items():
            parts[name].load_state_dict(loaded)

    def check(self, path: Path) -> None:
        """Compares the files of a checkpoint with its manifest; collective.

        Raises:
            ValueError: names what is wrong, and what else there is.
        """
        if broken := self._broken(path):
            others = [name for name in checkpoint_names(self._run) if name != path.name]
            instead = f"take another one: --checkpoint {' or '.join(others)}" if others else "there is no other checkpoint"
            raise ValueError(f"{'; '.join(broken)}; {instead}")

    def _broken(self, path: Path) -> list[str]:
        """What is wrong with the files, on all ranks alike, which share the reading."""
        if path in self._checked:
            return []
        everyone = _on_all(lambda: broken_files(path, dist.get_rank(), dist.get_world_size()))
        found = list(dict.fromkeys(problem for problems in everyone for problem in problems))
        if not found:
            self._checked.add(path)
        return found

    def _set_aside(self, broken: dict[str, list[str]], index: dict[str, Any], candidates: list[str]) -> None:
        whole = candidates[len(broken) :]
        for problems in broken.values():
            goes_on = f"training goes on from {whole[0]}" if whole else "there is no other one"
            print(f"note: {'; '.join(problems)}; {goes_on}", file=sys.stderr)
        if not whole:
            return
        index["last"] = whole[0]
        if index.get("best") in broken:
            del index["best"], index["best_ne"]
            (self.folder / LOWEST).unlink(missing_ok=True)
        write_checkpoint_index(self._run, index)
        for name in broken:
            if (self.folder / name).exists():
                remove(self.folder / f"broken-{name}")
                os.replace(self.folder / name, self.folder / f"broken-{name}")

    def _publish(
        self, writer: ChecksumWriter, group: dist.ProcessGroup | None, name: str, progress: str, validation: ValidationLoss | None
    ) -> None:
        """Collective over the group: the checkpoint appears when its files are whole on all ranks, or not at all."""
        temporary = self.folder / f".{name}.saving"
        written = _on_all(lambda: writer.files, group)
        files = {name: about for of_rank in written for name, about in of_rank.items()}

        def replace() -> None:
            if dist.get_rank() == 0:
                (temporary / PROGRESS).write_text(progress, encoding="utf-8")
                (temporary / RUN).write_text(json.dumps(describe_run(self._run)), encoding="utf-8")
                own = describe_files(temporary / name for name in (METADATA, PROGRESS, RUN))
                write_manifest(temporary, files | own)
                self._replace(temporary, name, validation)

        _on_all(replace, group)

    def _replace(self, temporary: Path, name: str, validation: ValidationLoss | None) -> None:
        final, index = self.folder / name, self.index()
        if final.exists():
            os.replace(final, self.folder / f".{name}.replaced")
        os.replace(temporary, final)
        index["last"] = name
        if validation is not None and choose_best(self.folder, validation):
            index |= {"best": name, "best_ne": validation.ne}
        write_checkpoint_index(self._run, index)
        self._remove_old(index)

    def _remove_old(self, index: dict[str, Any]) -> None:
        kept = {index["last"], index.get("best"), *checkpoint_names(self._run)[-self._keep :]}
        for old in (*self.folder.glob("step-*"), *self.folder.glob(".step-*.replaced")):
            if old.name not in kept:
                remove(old)


class _Background:
    """One save at a time in a thread, over a process group of its own: its collectives must not meet those of the steps."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def save(self, state: dict[str, Any], writer: ChecksumWriter, publish: Callable[[dist.ProcessGroup | None], None]) -> None:
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        group = self._group
        written = dcp.async_save(
            state, storage_writer=writer, planner=RowBlockPlanner(), process_group=group, async_stager=HostCopy()
        )

        def finish() -> None:
            written.result()  # type: ignore[union-attr]
            publish(group)

        self._under_way = self._thread.submit(finish)

    def wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def _on_all(work: Callable[[], _T], group: dist.ProcessGroup | None = None) -> list[_T]:
    """What each rank made, in order; a file that one rank cannot read or write is an error on all. Collective."""
    mine: tuple[Any, OSError | None]
    try:
        mine = work(), None
    except OSError as error:
        mine = None, error
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for _, problem in everyone:
        if problem is not None:
            raise problem
    return [made for made, _ in everyone]


def _has_random_states(saved: Metadata, random: dict[str, dict[str, Any]]) -> bool:
    """Whether a checkpoint is of as many ranks, and has this rank's random states, of the same kinds of device."""
    wanted = {f"random.{rank}.{name}" for rank, states in random.items() for name in states}
    return saving_ranks(saved) == dist.get_world_size() and wanted <= saved.state_dict_metadata.keys()


def _state(parts: Parts) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}
