"""The taste by vectors of past events: that of `EventTaste` on what is projected, and nothing where a vector is missing."""

from __future__ import annotations

import torch
from inputs_by_hand import reading
from past_events import past

from prectr_torchrec.modules import ComparedEvents, Inputs, VectorColumn, VectorTaste

IMAGE = VectorColumn("candidate", "image", width=3, mean=[1.0, 0.0, -1.0], deviation=[2.0, 1.0, 0.5], history=True)


def inputs(image: torch.Tensor, candidates: torch.Tensor) -> Inputs:
    """One request with events that have these (1, L, 3), the first clicked."""
    click = torch.tensor([[1] + [0] * (image.shape[1] - 1)])
    length, nothing = torch.tensor([image.shape[1]]), torch.zeros_like(click)
    happened = past(torch.empty(1, image.shape[1], 0), length, level=nothing, click=click, position=nothing, age=nothing + 60.0)
    events = happened.events._replace(features={**happened.events.features, "image": image})
    weights = torch.ones(1), torch.zeros(len(candidates), dtype=torch.int64), torch.ones(len(candidates))
    return Inputs({}, {"image": candidates}, {"history": events, "peer": events}, {}, *weights)


def test_it_is_the_taste_over_standardised_and_projected_vectors() -> None:
    part = VectorTaste([IMAGE], num_levels=4, dim=2)
    image, candidates = torch.randn(1, 5, 3), torch.randn(4, 3)
    given = inputs(image, candidates)
    found = part(given, reading(4))
    project = part.encode[0].project.weight
    mean, deviation = torch.tensor(IMAGE.mean), torch.tensor(IMAGE.deviation)
    events, targets = (((values - mean) / deviation) @ project.T for values in (image, candidates))
    wanted = part.tastes[0](targets, given.slots, ComparedEvents(given.sequences["history"], events))
    torch.testing.assert_close(found.features, torch.stack([wanted.mean, wanted.variance], dim=1))
    torch.testing.assert_close(found.shift, wanted.mean.unsqueeze(1))
    torch.testing.assert_close(found.report["vector_taste"], wanted.mean)


def test_an_event_or_a_candidate_without_a_vector_says_nothing() -> None:
    part = VectorTaste([IMAGE], num_levels=4)
    image, nothing = torch.randn(1, 3, 3), torch.full((1, 2, 3), torch.nan)
    candidates = torch.cat([torch.randn(2, 3), torch.full((1, 3), torch.nan)])
    with_missing = part(inputs(torch.cat([image, nothing], dim=1), candidates), reading(3))
    without = part(inputs(image, candidates), reading(3))
    torch.testing.assert_close(with_missing.features, without.features)
    assert without.shift is not None and without.shift[2] == 0 and without.features[2].tolist() == [0, 1]
    with_missing.features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


def test_own_and_peers_have_tastes_of_their_own() -> None:
    part = VectorTaste([IMAGE, IMAGE], num_levels=4, whose=("own", "peers"))
    found = part(inputs(torch.randn(1, 4, 3), torch.randn(2, 3)), reading(2))
    assert found.features.shape == (2, part.num_features) == (2, 8)
    torch.testing.assert_close(found.shift, found.features[:, :4].sum(1, keepdim=True))
