"""Pairs with a teacher's soft grades, to learn from beside the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.losses import RehearsalLoss
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.teacher_scores import MANIFEST, read_teacher_scores
from prectr_torchrec.modules import Inputs, Label, Loss, Predictions, divergence
from prectr_torchrec.runs.workspace import file_digest
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.batches import to_device
from prectr_torchrec.text.pair_data import PairBatch, PairData, teacher_targets
from prectr_torchrec.text.student import predict_relevance


class Rehearsal(Loss):
    """What a teacher says of pairs of the train queries, so that the text side does not forget it (rehearsal, Robins 1995).

    Each step draws pairs that the teacher has scored, with replacement.

    PyTorch's generator on the CPU draws. It differs between ranks, and a checkpoint keeps its state: a resumed run draws on.

    Args:
        settings: `losses.rehearsal`, with pairs.
        text: lengths of the texts.
        levels: of relevance.
        tokenizer: folder of the run's tokenizer.
        device: where pairs go.

    Raises:
        ConfigError: pairs of other levels, or none that the teacher has scored.
        ValueError: a file that cannot be used, or scores of other levels.

    Attributes:
        digests: SHA-256 of what it draws from; of scores, that of their manifest.
    """

    def __init__(self, settings: RehearsalLoss, text: TextConfig, levels: Levels, tokenizer: Path, device: torch.device) -> None:
        super().__init__()
        assert settings.pairs is not None
        source, folders = PairsFile.open(Path(settings.pairs)), [Path(s) for s in settings.scores]
        source.check_levels(levels)
        pairs = source.read(split="train")
        teacher, _ = teacher_targets(pairs, read_teacher_scores(folders, levels=levels, hidden=False))
        seen = ~np.isnan(teacher[:, 0])
        if not seen.any():
            raise ConfigError(f"losses.rehearsal.scores: {settings.scores} have none of the train pairs of {settings.pairs}")
        self._data = PairData(pairs.filter(seen), tokenizer, text.query_tokens, text.title_tokens, device)
        self._teacher = torch.from_numpy(teacher[seen])
        self.digests = {"pairs": file_digest(source.path), "scores": [file_digest(folder / MANIFEST) for folder in folders]}
        self._batch_size, self._device, self._temperature = settings.batch_size, device, settings.temperature

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`rehearsal`, in training."""
        if not self.training:
            return {}
        pairs, teacher = self.draw()
        log_pi = predict_relevance(predictions.own.model.relevance, pairs).log_pi
        return {"rehearsal": divergence(log_pi, teacher, self._temperature)}

    def draw(self) -> tuple[PairBatch, Tensor]:
        """Returns: B pairs, and (B, K) what the teacher says of them."""
        rows = torch.randint(len(self._data), (self._batch_size,))
        return self._data.batch(rows.numpy()), to_device(self._teacher[rows], self._device)
