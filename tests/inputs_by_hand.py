"""Inputs by hand, with everything that the parts of a ranker read."""

from __future__ import annotations

import torch
from past_events import past
from torch import Tensor

from prectr_torchrec.modules import Events, Inputs, Relevance, TextReading, Texts, Widths

LEVELS, DIM, VOCABULARY = 4, 6, 50
WIDTHS = Widths(
    request={"user_id": DIM, "query_id": DIM},
    candidate={"item_id": DIM, "brand_id": DIM},
    sequences={"history": {"item_id": DIM, "query_id": DIM}, "peer": {"item_id": DIM}},
)
RELEVANCE, MATCH, TITLE = 8, 5, 3
"""Widths of what the relevance side says in `reading`."""


def inputs_by_hand(requests: int) -> Inputs:
    """Random inputs, two candidates a request; request 0 has no past, candidate 1 no grade."""
    R, C = requests, 2 * requests
    user = counters("user", R) | {"user_events": counted(R, 1), "user_query_events": counted(R, 1)}
    peers = counters("query", R) | counters("group", R) | {"query_events": counted(R, 1)}
    level = torch.arange(C) % LEVELS
    graded = level > 0
    predicted = torch.rand(C, LEVELS).softmax(1) * ~graded.unsqueeze(1)
    item = {"shown": counted(C, 1) + 5, "clicked": counted(C, 1), "examined": counted(C, 1), "carts": torch.ones(C, 1)}
    grades = {"level": level, "relevance": torch.where(graded, level.float(), torch.nan), "predicted": predicted}
    return Inputs(
        request=user | peers | {name: torch.randn(R, dim) for name, dim in WIDTHS.request.items()},
        candidate=item
        | grades
        | {"position": torch.arange(C) % 3}
        | {name: torch.randn(C, dim) for name, dim in WIDTHS.candidate.items()},
        sequences={name: events(R, dims) for name, dims in WIDTHS.sequences.items()},
        texts={
            "query": Texts(tokens(R, 4), torch.arange(R)),
            "title": Texts(tokens(C, 5), torch.arange(C)),
            "history_title": Texts(tokens(R, 5), torch.randint(0, R, (R, R + 2))),
        },
        request_weight=torch.ones(R),
        candidate_request=torch.arange(R).repeat_interleave(2),
        candidate_weight=torch.ones(C),
    )


def events(requests: int, widths: dict[str, int]) -> Events:
    """As many past events as the number of the request, beside room for two more."""
    R, L = requests, requests + 2
    level, age = torch.randint(0, LEVELS + 1, (R, L)), torch.rand(R, L) * 1e5
    happened = past(torch.empty(R, L, 0), torch.arange(R), level=level, click=level % 2, position=level, age=age).events
    return happened._replace(features={**happened.features, **{name: torch.randn(R, L, dim) for name, dim in widths.items()}})


def reading(candidates: int) -> TextReading:
    """What the relevance side could say of so many candidates."""
    relevance = Relevance(torch.randn(candidates, RELEVANCE), torch.randn(candidates, LEVELS).log_softmax(1))
    return TextReading(relevance, torch.randn(candidates, MATCH), torch.zeros(candidates, 0), torch.randn(candidates, TITLE))


def tokens(rows: int, width: int) -> Tensor:
    """(rows, width) token ids from 5, each row one longer than the one before it."""
    return torch.randint(5, VOCABULARY, (rows, width)) * (torch.arange(width) < torch.arange(1, rows + 1).unsqueeze(1))


def counted(rows: int, width: int) -> Tensor:
    return torch.randint(0, 5, (rows, width)).float()


def counters(who: str, requests: int) -> dict[str, Tensor]:
    """Counters of the user, the query or its group, by level; of request 0 all zero."""
    past = (torch.arange(requests) > 0).unsqueeze(1)
    drawn = {f"{who}_{what}": counted(requests, LEVELS + 1) * past for what in ("shown", "clicked", "examined")}
    return drawn | {f"{who}_carts": torch.ones(requests, LEVELS + 1) * past}
