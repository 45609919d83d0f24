"""What all ranks agree on at each step between forward and backward: whether to learn from the loss, and whether to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from prectr_torchrec.checkpoints.names import parameter_name
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.origin import SampleRow, format_rows
from prectr_torchrec.distributed.stop import StopSignal
from prectr_torchrec.training.task import StepReport


class StepGuard:
    """The forward of a training pipeline, with a look at the loss before anything has learned from it.

    Where the loss of any rank is NaN, infinite or above `max_loss`, no rank runs backward: tables, which update themselves in
    it, towers and the optimizers' state stay as they are. One tiny all-reduce a step carries this and the wish to stop.

    Args:
        model: what the pipeline runs; looked at in training only.
        stop: this rank's signals.
        on_bad_loss: `stop` raises, `skip` goes on with the next batch.
        max_loss: a greater loss is as bad as NaN; None: any number is good.
        max_skipped: bad batches in a row that `skip` puts up with: then it is the model that is broken, and not a batch.

    Attributes:
        bad: the last batch was left out on all ranks.
        stopping: a rank was asked to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        stop: StopSignal,
        *,
        on_bad_loss: Literal["stop", "skip"] = "stop",
        max_loss: float | None = None,
        max_skipped: int = 10,
    ) -> None:
        self._model, self._stop = model, stop
        self._on_bad_loss, self._max_loss, self._max_skipped = on_bad_loss, max_loss, max_skipped
        self._loss, self._requests = 0.0, list[int]()
        self.bad, self.stopping, self.skipped_in_a_row = False, False, 0

    def __call__(self, batch: SearchBatch) -> tuple[Tensor, StepReport]:
        loss, report = self._model(batch)
        if self._model.training:
            good = report.terms["loss"].isfinite()
            if self._max_loss is not None:
                good = good & (report.terms["loss"] <= self._max_loss)
            self.bad, self.stopping = self._agree(~good, self._stop.received is not None)
            if self.bad:
                self._loss, self._requests = float(report.terms["loss"]), _requests_without_score(batch, report)
                loss = torch.zeros_like(loss, requires_grad=True)  # leads back to nothing
        return loss, report

    def agree_to_stop(self, device: torch.device) -> bool:
        """Whether a rank was asked to stop, for what is no training step; collective."""
        self.stopping = self._agree(torch.zeros((), dtype=torch.bool, device=device), self._stop.received is not None)[1]
        return self.stopping

    def handle_bad_loss(self, where: str, rows: Sequence[SampleRow]) -> None:
        """Says which batch was left out, after a step with `bad`; collective.

        Args:
            where: the step, in words.
            rows: of this rank's batch.

        Raises:
            ValueError: `on_bad_loss` is `stop`, or more than `max_skipped` batches in a row were bad.
        """
        self.skipped_in_a_row += 1
        message = f"bad loss at {where}: {'; '.join(_of_all_ranks(self._describe(rows)))}"
        if self._on_bad_loss == "stop":
            raise ValueError(
                f"{message}. Nothing was learned from it: mend these rows, lower the rates in train.stages, or set "
                "train.on_bad_loss to 'skip'"
            )
        if self.skipped_in_a_row > self._max_skipped:
            raise ValueError(
                f"{message}. More than train.max_skipped = {self._max_skipped} batches in a row: it is not the data; lower the "
                "rates in train.stages"
            )
        if dist.get_rank() == 0:
            print(f"note: skipped a batch: {message}", file=sys.stderr, flush=True)

    def _describe(self, rows: Sequence[SampleRow]) -> str:
        if torch.isfinite(torch.tensor(self._loss)) and (self._max_loss is None or self._loss <= self._max_loss):
            return ""
        culprits = [rows[request] for request in self._requests if request < len(rows)]
        return f"rank {dist.get_rank()}: loss {self._loss:.4g}, {format_rows(culprits or rows)}"

    @staticmethod
    def _agree(bad: Tensor, stop: bool) -> tuple[bool, bool]:
        flags = torch.stack([bad, torch.full_like(bad, stop)]).int()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        any_bad, any_stop = flags.tolist()  # one copy to the host
        return bool(any_bad), bool(any_stop)


def check_weights(towers: dict[str, Tensor], model: nn.Module, where: str) -> None:
    """Refuses to save what is not finite: a gradient may be NaN though the loss is not. Collective.

    Args:
        towers: parameters by name.
        model: its state holds the sharded tables.
        where: the step, in words.

    Raises:
        ValueError: on all ranks; names a weight.
    """
    tables = {parameter_name(name): value for name, value in model.state_dict().items() if isinstance(value, ShardedTensor)}
    parts = {f"weight {name}": [parameter] for name, parameter in towers.items()}
    parts |= {name: [shard.tensor for shard in value.local_shards()] for name, value in tables.items()}
    broken = next((name for name, tensors in parts.items() if not all(map(_is_finite, tensors))), "")
    if found := _of_all_ranks(broken):
        raise ValueError(f"{found[0]} is not finite at {where}; it is not saved; lower the rates in train.stages")


def _is_finite(values: Tensor) -> bool:
    """Looks at sums, in which a NaN or infinity shows: nothing of a table's size is allocated."""
    parts = torch.atleast_1d(values.detach()).split(2**16)
    return all(bool(part.sum(dtype=torch.float32).isfinite()) for part in parts)


def _requests_without_score(batch: SearchBatch, report: StepReport) -> list[int]:
    """Requests of the batch with a candidate whose score is no number."""
    wrong = ~report.logged["click"].isfinite() & (batch.candidate_weight > 0)
    return batch.candidate_request[wrong].unique().tolist()


def _of_all_ranks(text: str) -> list[str]:
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [text for text in texts if text]
