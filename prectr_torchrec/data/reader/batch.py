"""The batch that everything downstream of the reader works on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from prectr_torchrec.data.columns import SAMPLE_WEIGHT
from prectr_torchrec.data.reader.packing import Layout
from prectr_torchrec.modules.inputs import Events, Inputs, Label, Texts


@dataclass(eq=False)
class SearchBatch(Pipelineable):
    """R requests with C candidates between them; both are constant over batches, padding has weight zero.

    Padding requests are empty rows at the end; padding candidates come last, belong to request R - 1 and have weight zero.
    `batch[name]` is a view of the packed tensors: a column of samples by its name, `history_level` and `candidate_level` of
    grades, and

    - `request_weight` (R,) and `candidate_weight` (C,) float32, 1 or 0 for padding; `candidate_request` (C,) int64, its row;
    - `request_id` (R,) int64, -1 for padding, `user_id` (R,) and `candidate_item_id` (C,) int64, as the samples have them;
    - `candidate_click` and `candidate_click_weight` (C,) float32, 0 without a label, and alike for any label;
    - `candidate_sample_weight` (C,) float32, what each counts in training, where candidates differ in that;
    - `history_lengths` and `peer_lengths` (R,) int64, how many events are real; what lies beyond is zero, with level 0;
    - `query_index` (R,), `candidate_title_index` (C,) and `history_title_index` (R, L) int64, into the texts.

    What the ranker does not read is not there. Shapes are those of `Inputs`: a number is (R, 1), (C, 1) or, of events, (R, L).

    Example::

        for batch in reader.epoch(0):
            clicks, weight = batch["candidate_click"], batch["candidate_click_weight"]  # (C,)
    """

    request_features: KeyedJaggedTensor
    """Stride R: table rows of request-level ids and of the `history_*`, `peer_*` and `candidate_*` sequences."""
    candidate_features: KeyedJaggedTensor
    """Stride C: table rows of candidate-level bags; padding rows have length zero."""
    packed: dict[str, Tensor]
    """`int64` and `float32`: all other values, end to end."""
    texts: dict[str, Tensor]
    """`query`, `title` and `history_title` -> (T, W) int64 token ids of the distinct texts, 0: padding."""
    layout: Layout
    """Where the views lie; one object for all batches of a reader."""
    most_candidates: int
    """Real candidates of the request that has most of them."""

    def __getitem__(self, name: str) -> Tensor:
        view: Tensor = self.layout.places[name].view(self.packed, *self._rows())[0]
        return view

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places

    @property
    def request_weight(self) -> Tensor:
        return self["request_weight"]

    @property
    def candidate_weight(self) -> Tensor:
        return self["candidate_weight"]

    @property
    def candidate_request(self) -> Tensor:
        return self["candidate_request"]

    def labels(self) -> dict[str, Label]:
        """What is to be learned of candidates, by name: `click`."""
        name = f"candidate_{SAMPLE_WEIGHT}"
        counts = self[name] if name in self.layout.places else None
        return {key: Label(self[f"candidate_{key}"], self[f"candidate_{key}_weight"], counts) for key in self.layout.labels}

    def replaced(self, **views: Tensor) -> SearchBatch:
        """The same batch, but with other values in some views; the packed tensors of these are copied."""
        changed = {self.layout.places[name].dtype for name in views}
        other = replace(self, packed={key: t.clone() if key in changed else t for key, t in self.packed.items()})
        for name, values in views.items():
            other[name].copy_(values)
        return other

    def inputs(self, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> Inputs:
        """What a ranker reads.

        Args:
            sequences: jagged vectors of stride R by feature: of requests, of `history_*`, `peer_*` and `candidate_*`.
            bags: pooled vectors, (C, D) by `candidate_*` feature and (R, D) by other ones.

        Raises:
            ValueError: a request has several values of a feature.
        """
        R, C = self._rows()
        found: dict[str, dict[str, Tensor]] = {"request": {}, "candidate": {}, "history": {}, "peer": {}}
        for block in self.layout.blocks:
            if block.feature:
                found[block.family].update(zip(block.keys, block.place.view(self.packed, R, C).unbind(0), strict=True))
        for name, jagged in sequences.items():
            family, _, stem = name.partition("_")
            if family in ("history", "peer"):
                found[family][stem] = jagged.to_padded_dense(found[family]["level"].shape[1]).float()
            elif family == "candidate":
                found[family][stem] = _padded(jagged.values(), C)
            else:
                found["request"][name] = _one_a_request(name, jagged, R)
        for name, rows in bags.items():
            if name.startswith("candidate_"):
                found["candidate"][name.removeprefix("candidate_")] = _padded(rows, C)
            else:
                found["request"][name] = rows.float()
        past = {name: Events(found[name], self[f"{name}_lengths"]) for name in ("history", "peer") if found[name]}
        texts = {name: Texts(tokens, self[self.layout.texts[name]]) for name, tokens in self.texts.items()}
        weights = self.request_weight, self.candidate_request, self.candidate_weight
        return Inputs(found["request"], found["candidate"], past, texts, *weights, most_candidates=self.most_candidates)

    def to(self, device: torch.device, non_blocking: bool = False) -> SearchBatch:
        return SearchBatch(
            self.request_features.to(device=device, non_blocking=non_blocking),
            self.candidate_features.to(device=device, non_blocking=non_blocking),
            {name: tensor.to(device=device, non_blocking=non_blocking) for name, tensor in self.packed.items()},
            {name: tensor.to(device=device, non_blocking=non_blocking) for name, tensor in self.texts.items()},
            self.layout,
            self.most_candidates,
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for moved in (self.request_features, self.candidate_features, *self.packed.values(), *self.texts.values()):
            moved.record_stream(stream)

    def pin_memory(self) -> SearchBatch:
        return SearchBatch(
            self.request_features.pin_memory(),
            self.candidate_features.pin_memory(),
            {name: tensor.pin_memory() for name, tensor in self.packed.items()},
            {name: tensor.pin_memory() for name, tensor in self.texts.items()},
            self.layout,
            self.most_candidates,
        )

    def _rows(self) -> tuple[int, int]:
        """R and C."""
        return self.request_features.stride(), self.candidate_features.stride()


def _padded(rows: Tensor, count: int) -> Tensor:
    return F.pad(rows.float(), (0, 0, 0, count - rows.shape[0]))


def _one_a_request(name: str, jagged: JaggedTensor, requests: int) -> Tensor:
    """(R, D) vectors of a request-level feature, zero for padding."""
    lengths = jagged.lengths()
    several = jagged.values().shape[0] > requests
    if type(lengths) is Tensor and lengths.device.type == "cpu":  # elsewhere the host would have to wait for the answer
        several = several or int(lengths.max()) > 1
    if several:
        raise ValueError(
            f"feature {name!r}: a request has several values of it, and one is expected; there is no pooling of them"
        )
    return jagged.to_padded_dense(1).view(requests, -1).float()
