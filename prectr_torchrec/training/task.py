"""What a TorchRec pipeline trains: embeddings, ranker and losses side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.models import build_model
from prectr_torchrec.modules import Inputs, Label, Loss, Predictions, RankingModel, SearchEmbeddings
from prectr_torchrec.training.freezing import HeldFeatures, freeze_towers, frozen_tables
from prectr_torchrec.training.losses import build_losses

HIDDEN_UNGRADED = 0.5
"""Share of the candidates without a grade that are seen as of a request without any, where grades are hidden. What is shown is
mostly relevant; what nobody graded is nearest to what is not shown, and has to be met there too."""


class StepReport(NamedTuple):
    """What a step has to say, detached."""

    terms: dict[str, Tensor]
    """Scalars: `loss`, and its unweighted terms."""
    ranking: dict[str, Tensor]
    """Label -> (C,) logits with the position held at its reference."""
    logged: dict[str, Tensor]
    """Label -> (C,) logits at the logged positions."""
    parts: dict[str, Tensor]
    """As of `Predictions.parts`."""


class Losses(nn.Module):
    r"""The weighted sum :math:`\sum_i w_i \sum_j L_{ij}` of the terms :math:`j` of each loss :math:`i`.

    Each term is a mean over the rows that it speaks of; padding and rows without the label have weight zero.

    Args:
        losses: by name.
        weights: of each.
    """

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = nn.ModuleDict(dict(losses)), dict(weights)

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> tuple[Tensor, StepReport]:
        """Returns the loss, and what to report."""
        terms: dict[str, Tensor] = {}
        total = inputs.candidate_weight.new_zeros(())
        for name, loss in self.losses.items():
            if found := loss(predictions, inputs, labels):
                first, *others = found.values()
                total = total + self.weights[name] * sum(others, first)
                terms |= found
        terms = {name: term.detach() for name, term in {**terms, "loss": total}.items()}
        ranking, logged = (
            {label: p.logit.detach() for label, p in found.items()} for found in (predictions.ranking, predictions.logged)
        )
        return total, StepReport(terms, ranking, logged, {name: part.detach() for name, part in predictions.parts.items()})


class RankingTask(nn.Module):
    """A batch in, the loss and what to report out.

    Only this module and the embeddings are traced; ranker and losses are leaves.

    Args:
        embeddings: the tables.
        model: the ranker.
        losses: what it learns from.
        held: takes features of frozen tables out of learning.
        hidden_grades: share of the graded candidates, drawn anew in each training step, that the ranker sees as of a request
            without grades, and with them half of the others; the losses see all grades.

    Attributes:
        hides_all_grades: the ranker sees no grade at all, as most candidates have none when it serves.
    """

    def __init__(
        self,
        embeddings: SearchEmbeddings,
        model: RankingModel,
        losses: Losses,
        *,
        held: HeldFeatures | None = None,
        hidden_grades: float = 0.0,
    ) -> None:
        super().__init__()
        self.embeddings, self.model, self.losses, self.held = embeddings, model, losses, held
        self.hidden_grades = hidden_grades
        self.hides_all_grades = False

    def forward(self, batch: SearchBatch) -> tuple[Tensor, StepReport]:
        """Args: batch: on the device of the ranker."""
        sequences, bags = self.embeddings(batch.request_features, batch.candidate_features)
        if self.held is not None:
            sequences, bags = self.held(sequences, bags)
        inputs = batch.inputs(sequences, bags)
        seen = inputs
        if self.training and self.hidden_grades:
            seen = _with_hidden_grades(inputs, self.hidden_grades)
        elif self.hides_all_grades:
            seen = inputs.without_grades()
        return self.losses(self.model(seen), inputs, batch.labels())


@torch.fx.wrap
def _with_hidden_grades(inputs: Inputs, share: float) -> Inputs:
    shares = torch.where(inputs.graded, share, HIDDEN_UNGRADED)
    return inputs.without_grades(torch.rand_like(shares) < shares)


def build_task(
    config: RunConfig,
    tokenizer: Path,
    *,
    table_device: torch.device | None = None,
    kept: bool = False,
    rehearsal: Loss | None = None,
    numbers: Mapping[str, Mapping[str, Any]] | None = None,
) -> RankingTask:
    """Builds the unsharded model.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        table_device: `meta` leaves the tables' memory to the sharder.
        kept: as of `text.build.build_relevance`.
        rehearsal: a loss with data of its own, which training brings and scoring has no use for.
        numbers: as of `models.build_model`.
    """
    frozen = frozen_tables(config.tables, config.train.freeze)
    held = HeldFeatures({name for name, feature in config.features.items() if feature.table in frozen}) if frozen else None
    model = build_model(config, tokenizer, kept=kept, numbers=numbers)
    losses, weights = build_losses(config.losses, config.model, config.data)
    if rehearsal is not None:
        losses["rehearsal"], weights["rehearsal"] = rehearsal, config.losses.rehearsal.weight
    task = RankingTask(
        build_embeddings(config.tables, config.features, table_device),
        model,
        Losses(losses, weights),
        held=held,
        hidden_grades=config.train.hidden_grades,
    )
    if config.train.freeze:
        freeze_towers(task, config.train.freeze)
    return task
