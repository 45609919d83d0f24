"""A training step on a device that is not there: shapes, dtypes and devices of tensors without their values.

PyTorch's build for CPUs makes fake CUDA tensors, but neither copies them nor runs their backward. A backend of Python stands in;
what asks for the name of a device, such as `Tensor.is_cuda`, is answered otherwise. It stays registered: to be run in a process
of its own, by `attempt`, whose errors can be handed on.
"""

from __future__ import annotations

import copy
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from pinned_runs import shrunk
from small_run import write_small_data
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torchrec import JaggedTensor
from torchrec.optim.fused import EmptyFusedOptimizer

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.distributed.stop import StopSignal
from prectr_torchrec.modules import TextEncoder
from prectr_torchrec.runs.metrics_log import Throughput
from prectr_torchrec.training.guard import StepGuard
from prectr_torchrec.training.optimizers import Optimizers
from prectr_torchrec.training.task import RankingTask, build_task

DEVICE = "gpu"
MISTAKES: dict[str, Callable[[Tensor], object]] = {
    "another device": lambda x: x + torch.zeros(3),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
}
"""What raises."""
WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.zeros(3).to(x.device),
    "index on the host": lambda x: x[torch.tensor([0, 1])],
    "put by mask": lambda x: x.index_put((x > 0,), x),
}
"""What is counted, once each."""


class Step(NamedTuple):
    """What is seen of a step."""

    waits: dict[str, int]
    """`file:function` -> how often the host waits there; a list of numbers is a wait for each."""
    devices: set[str]
    """Of the gradients."""
    without_gradient: int
    """Parameters and looked-up vectors."""


class Waits(TorchDispatchMode):
    """Counts, by function of the product, what the host would wait for the device for.

    A number that is asked for is 1, and a flag is not set. A shape that depends on values raises, as fake tensors do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        asked = func is aten._local_scalar_dense.default and args[0].device.type == DEVICE
        out = int(args[0].dtype == torch.int64) if asked else func(*args, **(kwargs or {}))
        copied = func is aten._to_copy.default and args[0].device != out.device
        copied |= func is aten.copy_.default and args[0].device != args[1].device
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            copied = any(i is not None and (i.dtype == torch.bool or i.device != args[0].device) for i in args[1])
        if asked or copied:
            self.places[_place()] += 1
        return out


class Lookups(nn.Module):
    """Stands in for the embeddings, which are TorchRec's: vectors of the right widths.

    Args:
        config: the run.
        batch: with its values.
        fake: the mode of the vectors.
    """

    def __init__(self, config: RunConfig, batch: SearchBatch, fake: FakeTensorMode) -> None:
        super().__init__()
        dims = {name: config.tables[feature.table].dim for name, feature in config.features.items()}
        requests, candidates = batch.request_features.to_dict(), batch.candidate_features.keys()
        rows = {name: len(ids.values()) for name, ids in requests.items()}
        rows |= dict.fromkeys(candidates, batch.candidate_features.stride())
        with fake:
            self.vectors = {name: torch.randn(n, dims[name], device=DEVICE, requires_grad=True) for name, n in rows.items()}
            lengths = {name: fake.from_tensor(ids.lengths()).to(DEVICE) for name, ids in requests.items()}
            self.sequences = {name: JaggedTensor(self.vectors[name], lengths=lengths[name]) for name in requests}
        self.bags = {name: self.vectors[name] for name in candidates}

    def forward(self, request_features: Any, candidate_features: Any) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        return self.sequences, self.bags


class Unsharded(nn.Module):
    """A task with what `Optimizers` asks of a sharded one."""

    def __init__(self, task: RankingTask) -> None:
        super().__init__()
        self.module, self.fused_optimizer = task, EmptyFusedOptimizer()

    def forward(self, batch: SearchBatch) -> Any:
        return self.module(batch)


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Makes the device known to PyTorch."""
    _setup_privateuseone_for_python_backend(DEVICE, Backend())


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it; raises AssertionError with the traceback of any error, of which some cannot be handed to another process."""
    try:
        return function(*arguments)
    except Exception:
        raise AssertionError(traceback.format_exc()) from None


def write_data(folder: Path) -> Path:
    """Samples for the shipped configurations, and `student`, a small encoder for those that start from one."""
    config = shrunk("prectr_v2", folder)
    write_small_data(folder, config, requests=24)
    shutil.copytree(folder / TOKENIZER, folder / "student")
    encoder = TextEncoder.from_config(vocab_size=len(load_tokenizer(folder / TOKENIZER)), **config.text.encoder)
    encoder.model.save_pretrained(folder / "student")
    return folder


def fake_step(config: RunConfig, data: Path) -> Step:
    """A training step without TorchRec's part: forward, losses, guard, backward, clipping, AdamW, and the notes for the log."""
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    task = build_task(config, data / TOKENIZER).train()
    batch = next(SearchReader(config, data, "train", data / TOKENIZER).epoch(0))
    rows = torch.stack([batch.request_weight.sum(), batch.candidate_weight.sum()])
    lookups = Lookups(config, batch, fake)
    with FakeCopyMode(fake):
        task.model, task.losses, batch, rows = copy.deepcopy((task.model, task.losses, batch, rows))
    task.embeddings = lookups
    # transformers asks real masks, and leaves fake ones alone
    with fake, patch("torch.distributed.all_reduce"), patch("transformers.masking_utils.is_tracing", lambda mask=None: False):
        _move(task)
        batch, model = batch.to(torch.device(DEVICE)), Unsharded(task)
        optimizers = Optimizers(model, config.train, requests=config.batch.requests)
        guard, throughput = StepGuard(model, StopSignal()), Throughput(steps_left=1)
        with Waits() as waits:
            loss, report = guard(batch)
            loss.backward()
            optimizers.combined.step()
            throughput.add(report.terms, rows)
    learned = [*lookups.vectors.values(), *(p for p in model.parameters() if p.requires_grad)]
    gradients = [parameter.grad for parameter in learned]
    return Step(dict(waits.places), {g.device.type for g in gradients if g is not None}, sum(g is None for g in gradients))


def seen_of(case: str) -> int:
    """Waits of one of `MISTAKES` or `WAITS`."""
    with FakeTensorMode(), Waits() as waits:
        (MISTAKES | WAITS)[case](torch.empty(3, device=DEVICE))
    return waits.places.total()


def _move(module: nn.Module) -> None:
    """`module.to(DEVICE)`, which PyTorch does not do to fake parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(DEVICE), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(DEVICE)


def _place() -> str:
    """The innermost function of the product that is running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_globals["__name__"].startswith("prectr_torchrec."):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{frame.f_globals['__name__'].removeprefix('prectr_torchrec.').replace('.', '/')}.py:{frame.f_code.co_qualname}"
