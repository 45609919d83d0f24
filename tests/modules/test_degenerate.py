"""Padding, empty pasts, batches of one and missing grades, for every part and for PRECTR with all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from inputs_by_hand import LEVELS, MATCH, RELEVANCE, TITLE, WIDTHS, inputs_by_hand, reading
from text_modules import encoder, match
from torch import Tensor, nn

from prectr_torchrec.modules import (
    PRECTR,
    Anchor,
    Consistency,
    Counters,
    CrossEntropy,
    Debias,
    DualInteraction,
    Events,
    Examination,
    Inputs,
    Interest,
    KnownGrade,
    Label,
    LoadBalance,
    LookedUpFeatures,
    Loss,
    Part,
    PastCounts,
    Personal,
    RandomNegatives,
    Taste,
    TextFeatures,
    TextReading,
    TextRelevance,
    TitleFeatures,
    TitleTaste,
)

R, C = 4, 8


def parts(relevance_dim: int = RELEVANCE, match_dim: int = MATCH, title_dim: int = TITLE) -> dict[str, Part]:
    """All that there are, with weights that say something."""
    torch.manual_seed(0)
    made: dict[str, Part] = {
        "ids": LookedUpFeatures(WIDTHS),
        "counts": PastCounts(),
        "text": TextFeatures(relevance_dim, match_dim),
        "title": TitleFeatures(title_dim),
        "grade": KnownGrade([1.0, 1.5, 2.0, 3.0], (1.0, 3.0), missing="modelled"),
        "counters": Counters(["user", "query", "group", "item"], LEVELS, position_corrected=True),
        "interest": Interest(WIDTHS.sequences["history"], LEVELS, dim=8),
        "personal": Personal(WIDTHS, LEVELS, relevance_dim=relevance_dim, dim=8),
        "taste": TitleTaste(Taste(50, dim=6, num_levels=LEVELS)),
    }
    for part in made.values():
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made


def ranker() -> PRECTR:
    relevance = TextRelevance(DualInteraction(encoder()), match(), [RELEVANCE], LEVELS)
    made = parts(RELEVANCE, relevance.match_dim, relevance.title_dim)
    return PRECTR(relevance, made, num_levels=LEVELS, click_tower=[16], position=Examination(3)).eval()


def output_of(part: Part, inputs: Inputs, text: TextReading) -> Tensor:
    """(C, ...) what a part gives to the towers and to the logits."""
    output = part(inputs, text)
    return torch.cat([output.features, *([] if output.shift is None else [output.shift])], dim=1)


def predicted(model: PRECTR) -> Callable[[Inputs], Tensor]:
    """(C, ...) the logits that rank, at the logged positions, and by level."""

    def predict(inputs: Inputs) -> Tensor:
        out = model(inputs)
        return torch.cat([out.ranking["click"].logit[:, None], out.logged["click"].logit[:, None], out.own.level_logits], dim=1)

    return predict


NAMES = [*parts(), "prectr"]
READING = reading(C)


def computed(name: str) -> tuple[nn.Module, Callable[[Inputs], Tensor]]:
    """A part or the ranker, and what it gives for the first candidates of `READING`; padding reads the text of the first."""
    if name == "prectr":
        model = ranker()
        return model, predicted(model)
    part = parts()[name]

    def run(inputs: Inputs) -> Tensor:
        place = torch.arange(len(inputs.candidate_weight)) * (inputs.candidate_weight > 0)
        return output_of(part, inputs, read(READING, place))

    return part, run


def read(text: TextReading, rows: Tensor) -> TextReading:
    relevance = text.relevance._make(value[rows] for value in text.relevance)
    return TextReading(relevance, text.match[rows], text.pair[rows], text.title[rows])


def batch() -> Inputs:
    torch.manual_seed(1)
    return inputs_by_hand(R)


def padded(inputs: Inputs) -> Inputs:
    """With a request and three candidates more that are padding: copies of others, with weight 0."""

    def more(values: Tensor, count: int) -> Tensor:
        return torch.cat([values, values[-count:]])

    def more_events(events: Events) -> Events:
        return Events({name: more(value, 1) for name, value in events.features.items()}, more(events.lengths, 1))

    counts = {"query": 1, "title": 3, "history_title": 1}
    return Inputs(
        {name: more(value, 1) for name, value in inputs.request.items()},
        {name: more(value, 3) for name, value in inputs.candidate.items()},
        {name: more_events(events) for name, events in inputs.sequences.items()},
        {name: text._replace(rows=more(text.rows, counts[name])) for name, text in inputs.texts.items()},
        torch.cat([inputs.request_weight, torch.zeros(1)]),
        torch.cat([inputs.candidate_request, torch.zeros(3, dtype=torch.long)]),
        torch.cat([inputs.candidate_weight, torch.zeros(3)]),
    )


def alone(inputs: Inputs, request: int) -> Inputs:
    """A batch of this request and its first candidate."""
    r, c = slice(request, request + 1), slice(2 * request, 2 * request + 1)
    kept = {"query": r, "title": c, "history_title": r}
    return Inputs(
        {name: value[r] for name, value in inputs.request.items()},
        {name: value[c] for name, value in inputs.candidate.items()},
        {n: Events({k: v[r] for k, v in e.features.items()}, e.lengths[r]) for n, e in inputs.sequences.items()},
        {name: text._replace(rows=text.rows[kept[name]]) for name, text in inputs.texts.items()},
        torch.ones(1),
        torch.zeros(1, dtype=torch.long),
        torch.ones(1),
    )


def beyond(events: Events) -> Events:
    """The events with other values where there is no event."""
    length = events.features["level"].shape[1]
    empty = torch.arange(length) >= events.lengths.unsqueeze(1)

    def other(values: Tensor) -> Tensor:
        if values.shape[1] != length:
            return values
        return torch.where(empty.view(*empty.shape, *[1] * (values.dim() - 2)), torch.ones_like(values), values)

    return events._replace(features={name: other(value) for name, value in events.features.items()})


def without_slots(inputs: Inputs) -> Inputs:
    """Without a past, and without room for one."""
    none = inputs.without_past("own").without_past("peers")
    sequences = {n: e._replace(features={k: v[:, :0] for k, v in e.features.items()}) for n, e in none.sequences.items()}
    past = none.texts["history_title"]
    return replace(none, sequences=sequences, texts={**none.texts, "history_title": past._replace(rows=past.rows[:, :0])})


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_candidate(name: str) -> None:
    _, run = computed(name)
    inputs = batch()
    torch.testing.assert_close(run(padded(inputs))[:C], run(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_beyond_the_lengths_of_a_past(name: str) -> None:
    _, run = computed(name)
    inputs = batch()
    changed = replace(inputs, sequences={n: beyond(events) for n, events in inputs.sequences.items()})
    torch.testing.assert_close(run(changed), run(inputs))


@pytest.mark.parametrize("request_number", [0, 2], ids=["no past", "a past"])
def test_a_candidate_alone_is_as_in_its_batch(request_number: int) -> None:
    _, run = computed("prectr")
    inputs = batch()
    torch.testing.assert_close(run(alone(inputs, request_number))[0], run(inputs)[2 * request_number], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_room_for_a_past_is_one_of_newcomers(name: str) -> None:
    module, run = computed(name)
    inputs = batch()
    out = run(without_slots(inputs))
    torch.testing.assert_close(out, run(inputs.without_past("own").without_past("peers")))
    if out.requires_grad:
        out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_missing_grades_leave_finite_outputs_and_gradients(name: str) -> None:
    module, run = computed(name)
    out = run(batch().without_grades())
    if out.requires_grad:
        out.square().sum().backward()
    assert out.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


LOSSES: dict[str, Loss] = {
    "click": CrossEntropy(),
    "anchor": Anchor(),
    "anchor on the grade": Anchor([1.0, 1.5, 2.0, 3.0]),
    "consistency": Consistency(0.3),
    "balance": LoadBalance(),
    "negatives": RandomNegatives(),
    "debias": Debias("swap"),
}


def terms(loss: Loss, inputs: Inputs, model: PRECTR) -> dict[str, Tensor]:
    clicks = (torch.arange(len(inputs.candidate_weight)) % 2).float()
    return loss(model(inputs), inputs, {"click": Label(clicks, inputs.candidate_weight)})


def real_grades(inputs: Inputs) -> Inputs:
    """The reader gives padding no grade."""
    return inputs.without_grades(inputs.candidate_weight == 0)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_no_loss(name: str) -> None:
    model, inputs = ranker(), batch()
    found, expected = (terms(LOSSES[name], given, model) for given in (real_grades(padded(inputs)), inputs))
    assert expected and all(value > 0 for value in expected.values())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_padding_has_no_loss_and_a_gradient_of_zero(name: str) -> None:
    model, inputs = ranker(), batch()
    found = terms(LOSSES[name], real_grades(replace(inputs, candidate_weight=torch.zeros(C))), model)
    sum(found.values(), torch.zeros((), requires_grad=True)).backward()
    assert all(value == 0 for value in found.values())
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.parameters())
