"""Layers and parts trace with torch.fx, and the graph computes what the module does on batches of any shape; one request, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from inputs_by_hand import LEVELS, MATCH, RELEVANCE, TITLE, WIDTHS, inputs_by_hand, reading, tokens
from past_events import past
from text_modules import encoder, match
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.distributed.train_pipeline import Tracer
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig

from prectr_torchrec import modules
from prectr_torchrec.modules import (
    CandidateSlots,
    ClickTower,
    ComparedEvents,
    Counters,
    CrossInteraction,
    DeclaredEffects,
    DualInteraction,
    EventAttention,
    EventEmbedding,
    EventTaste,
    Examination,
    ExpertTower,
    FurtherEncodings,
    FurtherMatch,
    GaussianEffect,
    GaussianPosterior,
    GaussianTitles,
    Interest,
    InterestTower,
    KnownGrade,
    LabelCounters,
    LabelProbability,
    LateInteraction,
    LevelMixture,
    LevelStatistics,
    LookedUpFeatures,
    Loss,
    MatchFeatures,
    NumberColumn,
    NumberEncoding,
    Numbers,
    PastCounts,
    Personal,
    PrecisionGate,
    RankingModel,
    RelevanceIncentive,
    RelevancePreference,
    RelevanceTower,
    SearchEmbeddings,
    TargetAttention,
    Taste,
    TextFeatures,
    TextRelevance,
    TitleBag,
    TitleFeatures,
    TitleTaste,
    VectorColumn,
    VectorEncoding,
    Vectors,
    VectorTaste,
)

NUMBERS = [
    NumberColumn("request", "user_events", logarithmic=True, edges=[0.0, 2.0, 9.0], bins=2),
    NumberColumn("candidate", "shown", edges=[0.0, 1.0], bins=2),
]
VECTORS = [
    VectorColumn("request", "user_shown", LEVELS + 1, mean=[1.0] * (LEVELS + 1), deviation=[2.0] * (LEVELS + 1)),
    VectorColumn("candidate", "shown", 1, mean=[0.0], deviation=[1.0]),
]
OF_EVENTS = VectorColumn("candidate", "item_id", 6, mean=[0.0] * 6, deviation=[1.0] * 6, history=True)
LEAVES = {
    "TextEncoder": "a Hugging Face model, whose code asks what its inputs hold; it also sorts texts by length",
    "NgramEncoder": "its features are jagged: how many n-grams a text has is known when it is read",
    "ReplicatedEmbeddingBagCollection": "TorchRec's collections are leaves of its tracer",
    "Interaction": "says what the interactions have in common",
    "Part": "says what the parts have in common",
}
"""Public layers and parts that stay whole in a graph, and why. So do rankers and losses, which read and give dictionaries."""


class Case(NamedTuple):
    module: nn.Module
    arguments: Callable[[int], tuple[Any, ...]]
    """Of a batch of so many requests."""
    leaves: tuple[str, ...] = ()
    method: str = "forward"


def events(R: int, dim: int = 6) -> ComparedEvents:
    level, vectors = torch.randint(0, 5, (R, R + 2)), torch.randn(R, R + 2, dim)
    age = torch.rand(R, R + 2) * 1e5
    return past(vectors, torch.arange(R), level=level, click=level % 2, position=level, age=age)


def slots(R: int) -> CandidateSlots:
    return CandidateSlots(torch.arange(R).repeat_interleave(2), torch.ones(2 * R), R)


def jagged(R: int, feature: str) -> KeyedJaggedTensor:
    return KeyedJaggedTensor([feature], torch.arange(2 * R) % 9, lengths=torch.full((R,), 2))


def part_arguments(R: int) -> tuple[Any, ...]:
    return inputs_by_hand(R), reading(2 * R)


def preference_arguments(R: int) -> tuple[Any, ...]:
    to_request = torch.arange(R).repeat_interleave(2)
    return (
        torch.randn(R, 6),
        events(R),
        torch.randn(2 * R, 6),
        events(R),
        events(R),
        slots(R),
        to_request,
        torch.rand(R, 5),
        torch.rand(R, 10),
        torch.rand(R, 4),
    )


CASES: dict[str, Case] = {
    "TargetAttention": Case(
        TargetAttention(6, 5, 4, dim=8, num_heads=2),
        lambda R: (torch.randn(R, 3, 6), torch.randn(R, R + 2, 5), torch.randn(R, R + 2, 4), torch.arange(R)),
    ),
    "EventEmbedding": Case(EventEmbedding(4, 3), lambda R: (events(R).events,)),
    "InterestTower": Case(InterestTower(6, 4, dim=8, num_heads=2), lambda R: (torch.randn(2 * R, 6), slots(R), events(R))),
    "EventAttention": Case(EventAttention(6, 4, dim=8, num_heads=2), lambda R: (torch.randn(R, 2, 6), events(R))),
    "RelevanceIncentive": Case(RelevanceIncentive(6, 8, 4), lambda R: (torch.randn(R, 6), torch.randn(R, 8), torch.randn(8))),
    "LevelMixture": Case(LevelMixture(), lambda R: (torch.randn(R, 4).log_softmax(1), torch.randn(R, 4))),
    "LevelStatistics": Case(LevelStatistics(5), lambda R: tuple(torch.rand(3, R, 5))),
    "Examination": Case(
        Examination(10), lambda R: (LabelProbability(-torch.rand(R), -torch.rand(R)), torch.randint(0, 20, (R,)))
    ),
    "GaussianPosterior": Case(
        GaussianPosterior(),
        lambda R: (torch.randn(R, R + 1, 4), torch.randn(R, R + 1), torch.rand(R, R + 1), torch.randn(R, 3, 4)),
    ),
    "GaussianEffect": Case(GaussianEffect(3), lambda R: (torch.randn(R, 6),)),
    "GaussianTitles": Case(GaussianTitles(50, 3, words=[7, 8]), lambda R: (torch.randint(0, 9, (R, 4)),)),
    "PrecisionGate": Case(
        PrecisionGate(4, 3, "mlp"), lambda R: (torch.randn(R, 4), torch.randn(R, 4), torch.ones(R, 2), torch.rand(R, 3))
    ),
    "RelevancePreference": Case(
        RelevancePreference(6, 6, 4, own=True, peers=True, statistics_dim=5, num_counts=4, dim=8), preference_arguments
    ),
    "TitleBag": Case(TitleBag(50, 4), lambda R: (tokens(R, 7),)),
    "EventTaste": Case(EventTaste(LEVELS), lambda R: (torch.randn(2 * R, 6), slots(R), events(R))),
    "Taste": Case(Taste(50, dim=6, num_levels=4), lambda R: (torch.randn(2 * R, 6), slots(R), events(R))),
    "TextMatch": Case(match(), lambda R: (tokens(R, 4), tokens(R, 4 + R))),
    "DualInteraction": Case(DualInteraction(encoder()), lambda R: (torch.randn(R, 16), torch.randn(R, 16)), method="pair"),
    "LateInteraction": Case(
        LateInteraction(encoder(), dim=8, hidden=4), lambda R: (torch.randn(R, 3, 8), torch.randn(R, R + 1, 8)), method="pair"
    ),
    "CrossInteraction": Case(CrossInteraction(encoder()), lambda R: (tokens(R, 3), tokens(R, 5)), ("encoder",), "pair"),
    "TextRelevance": Case(
        TextRelevance(DualInteraction(encoder()), match(), [8], 4), lambda R: (torch.randn(R, 32), torch.randn(R, 24))
    ),
    "RelevanceTower": Case(RelevanceTower(6, [8], 4), lambda R: (torch.randn(R, 6),)),
    "ClickTower": Case(ClickTower(6, [8], 4, cross_layers=2, labels=["cart"]), lambda R: (torch.randn(R, 6),)),
    "SearchEmbeddings": Case(
        SearchEmbeddings(
            [EmbeddingConfig(name="a", num_embeddings=9, embedding_dim=4, feature_names=["x"])],
            [EmbeddingBagConfig(name="b", num_embeddings=9, embedding_dim=4, feature_names=["y"])],
        ),
        lambda R: (jagged(R, "x"), jagged(2 * R, "y")),
        ("sequences", "bags"),
    ),
    "LookedUpFeatures": Case(LookedUpFeatures(WIDTHS), part_arguments),
    "PastCounts": Case(PastCounts(), part_arguments),
    "MatchFeatures": Case(MatchFeatures(match()), part_arguments),
    "TextFeatures": Case(TextFeatures(RELEVANCE, MATCH), part_arguments),
    "TitleFeatures": Case(TitleFeatures(TITLE), part_arguments),
    "KnownGrade": Case(KnownGrade([1.0, 1.5, 2.0, 3.0], (1.0, 3.0)), part_arguments),
    "NumberEncoding": Case(NumberEncoding(NUMBERS), lambda R: (torch.randn(R, 2),)),
    "Numbers": Case(Numbers(NUMBERS), part_arguments),
    "DeclaredEffects": Case(DeclaredEffects(Numbers(NUMBERS), NUMBERS, Vectors(VECTORS, dim=2)), part_arguments),
    "VectorEncoding": Case(VectorEncoding(VECTORS[0], dim=2), lambda R: (torch.randn(R, LEVELS + 1),)),
    "Vectors": Case(Vectors(VECTORS, dim=2), part_arguments),
    "Counters": Case(Counters(["user", "query", "group", "item"], LEVELS, position_corrected=True), part_arguments),
    "LabelCounters": Case(LabelCounters(["user", "item"], {"cart": "click"}), part_arguments),
    "Interest": Case(Interest(WIDTHS.sequences["history"], LEVELS, dim=8), part_arguments),
    "Personal": Case(Personal(WIDTHS, LEVELS, relevance_dim=RELEVANCE, dim=8), part_arguments),
    "FurtherMatch": Case(FurtherMatch(["title"], match()), part_arguments),
    "FurtherEncodings": Case(
        FurtherEncodings(["title"], text_dim=5, dim=3),
        lambda R: (inputs_by_hand(R), reading(2 * R)._replace(further={"title": torch.randn(2 * R, 5)})),
    ),
    "ExpertTower": Case(ExpertTower(6, num_experts=2, expert=[5], tower=[3], labels=["order"]), lambda R: (torch.randn(R, 6),)),
    "VectorTaste": Case(VectorTaste([OF_EVENTS], LEVELS, dim=3, whose=("own", "peers")), part_arguments),
    "TitleTaste": Case(TitleTaste(Taste(50, dim=6, num_levels=LEVELS)), part_arguments),
}


class OneMethod(nn.Module):
    """A method of a module as `forward`."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, one: Any, other: Any) -> Any:
        return getattr(self.module, self.method)(one, other)


def plain(value: Any) -> list[Tensor]:
    """All tensors of what a module returns."""
    if isinstance(value, JaggedTensor):
        return [value.values(), value.lengths()]
    return [
        tensor
        for leaf in pytree.tree_leaves(value)
        if leaf is not None
        for tensor in (plain(leaf) if isinstance(leaf, JaggedTensor) else [leaf])
    ]


def traced(module: nn.Module, leaves: tuple[str, ...], **concrete: Any) -> fx.GraphModule:
    return fx.GraphModule(module, Tracer(leaf_modules=list(leaves)).trace(module, concrete or None))


@pytest.mark.parametrize("name", CASES)
def test_a_graph_computes_what_its_module_does(name: str) -> None:
    module, arguments, leaves, method = CASES[name]
    if method != "forward":
        module, leaves = OneMethod(module, method), tuple(f"module.{leaf}" for leaf in leaves)
    graph = traced(module.eval(), leaves)
    for requests in (2, 5):
        torch.manual_seed(requests)
        given = arguments(requests)
        torch.testing.assert_close(plain(graph(*given)), plain(module(*given)))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_one_request_without_a_past_is_finite_and_so_are_its_gradients(name: str) -> None:
    module, arguments, _, method = CASES[name]
    torch.manual_seed(0)
    outputs = [x for x in plain(getattr(module, method)(*arguments(1))) if x.is_floating_point()]
    assert outputs and all(x.isfinite().all() for x in outputs)
    learned = [x.square().sum() for x in outputs if x.requires_grad]
    module.zero_grad()
    if learned:
        torch.stack(learned).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_no_public_module_is_forgotten() -> None:
    public = {
        name
        for name in modules.__all__
        if isinstance(found := getattr(modules, name), type)
        and issubclass(found, nn.Module)
        and not issubclass(found, RankingModel | Loss)
    }
    assert public == {*CASES, *LEAVES}
