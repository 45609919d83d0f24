"""From a batch and its looked-up ids to what rankers read."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchrec import JaggedTensor

from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.modules.inputs import Events, Inputs, Texts

SEQUENCES = ("history", "peer")
_COUNTS = ("user_events", "user_query_events", "query_events")
_COUNTED = ("shown", "clicked", "examined")
_HAPPENED = ("level", "click", "position", "age", "predicted")


def to_inputs(batch: SearchBatch, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> Inputs:
    """The inputs of a ranker.

    Args:
        batch: of the reader.
        sequences: jagged vectors of stride R by feature: of requests, of `history_*`, `peer_*` and `candidate_*`.
        bags: (C, D) pooled vectors by `candidate_*` feature.
    """
    R, C = batch.request_weight.shape[0], batch.candidate_weight.shape[0]
    request = {name: getattr(batch, name).unsqueeze(1) for name in _COUNTS}
    request |= {f"{who}_{what}": getattr(batch, f"{who}_{what}") for who in ("user", "query", "group") for what in _COUNTED}
    candidate = {what: getattr(batch, f"item_{what}").unsqueeze(1) for what in _COUNTED}
    candidate |= {"position": batch.position, "relevance": batch.relevance, "level": batch.level}
    candidate["predicted"] = batch.candidate_predicted
    events = {family: {what: getattr(batch, f"{family}_{what}") for what in _HAPPENED} for family in SEQUENCES}
    for name, jagged in sequences.items():
        family, _, stem = name.partition("_")
        if family in SEQUENCES:
            events[family][stem] = jagged.to_padded_dense(events[family]["level"].shape[1]).float()
        elif family == "candidate":
            candidate[stem] = _padded(jagged.values(), C)
        else:
            request[name] = jagged.to_padded_dense(1).view(R, -1).float()
    candidate |= {name.removeprefix("candidate_"): _padded(rows, C) for name, rows in bags.items()}
    texts = {
        "query": Texts(batch.query_tokens, batch.query_index),
        "title": Texts(batch.title_tokens, batch.title_index),
        "history_title": Texts(batch.history_title_tokens, batch.history_title_index),
    }
    past = {family: Events(events[family], getattr(batch, f"{family}_lengths")) for family in SEQUENCES}
    return Inputs(request, candidate, past, texts, batch.request_weight, batch.candidate_request, batch.candidate_weight)


def _padded(rows: Tensor, count: int) -> Tensor:
    return F.pad(rows.float(), (0, 0, 0, count - rows.shape[0]))
