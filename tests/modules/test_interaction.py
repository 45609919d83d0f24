"""How query and title meet, in all three ways, and the encoder of n-grams."""

import pytest
import torch
from text_modules import encoder, match
from torch import Tensor

from prectr_torchrec.modules import (
    CrossInteraction,
    DualInteraction,
    Interaction,
    LateInteraction,
    NgramEncoder,
    TextEncoder,
    TextRelevance,
)

QUERIES = torch.tensor([[2, 7, 8, 0], [2, 9, 0, 0], [2, 30, 41, 12]])
TITLES = torch.tensor([[2, 7, 11, 12, 0, 0], [2, 30, 9, 10, 13, 14], [2, 41, 0, 0, 0, 0]])
ALL = ["dual", "late", "cross", "ngram"]


def interaction(kind: str) -> Interaction:
    torch.manual_seed(1)
    if kind == "ngram":
        return DualInteraction(ngrams()).eval()
    made = {"dual": DualInteraction, "late": LateInteraction, "cross": CrossInteraction}[kind]
    return made(encoder()).eval()


def ngrams(**settings: int) -> NgramEncoder:
    torch.manual_seed(1)
    return NgramEncoder(**{"rows": 97, "embedding_dim": 8, "hidden": (12, 6), **settings}).eval()  # type: ignore[arg-type]


def pairs(module: Interaction, queries: Tensor, titles: Tensor) -> Tensor:
    return module.features(module.pair(module.encode(queries), module.encode(titles)))


@pytest.mark.parametrize("kind", ALL)
def test_padding_changes_no_pair(kind: str) -> None:
    module = interaction(kind)
    wide = [torch.nn.functional.pad(texts, (0, 5)) for texts in (QUERIES, TITLES)]
    torch.testing.assert_close(pairs(module, *wide), pairs(module, QUERIES, TITLES))


@pytest.mark.parametrize("kind", ALL)
def test_a_pair_does_not_depend_on_its_batch(kind: str) -> None:
    module = interaction(kind)
    whole = pairs(module, QUERIES, TITLES)
    alone = [pairs(module, QUERIES[i : i + 1], TITLES[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(pairs(module, QUERIES[order], TITLES[order]), whole[order])


@pytest.mark.parametrize("kind", ALL)
def test_empty_texts_give_finite_pairs_and_gradients(kind: str) -> None:
    module = interaction(kind)
    queries, titles = torch.tensor([[0, 0], [2, 7], [2, 0], [0, 0]]), torch.tensor([[2, 7], [0, 0], [2, 0], [0, 0]])
    found = pairs(module, queries, titles)
    found.square().sum().backward()
    assert found.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_is_trained(kind: str) -> None:
    module = interaction(kind).train()
    pairs(module, QUERIES, TITLES).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or p.grad.eq(0).all()] == [] or kind == "ngram"
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", ["dual", "late", "ngram"])
def test_kept_titles_give_what_titles_give(kind: str) -> None:
    module = interaction(kind)
    kept = torch.cat([module.encode(TITLES[i : i + 1]) for i in range(3)])
    query = module.encode(QUERIES)
    torch.testing.assert_close(module.pair(query, kept), module.pair(query, module.encode(TITLES)))
    titles, others = (module.title_vector(module.pair(queries, kept)) for queries in (query, query.flip(0)))
    assert titles.shape == (3, module.title_dim)
    torch.testing.assert_close(titles, others)


def test_one_query_meets_many_kept_titles_of_half_precision() -> None:
    module = interaction("late")
    query, titles = module.encode(QUERIES[:1]), module.encode(TITLES)
    expected = module.pair(query.expand(3, -1, -1), titles)
    torch.testing.assert_close(module.pair(query, titles), expected)
    torch.testing.assert_close(module.pair(query, titles.half()), expected, atol=5e-3, rtol=5e-3)


def test_late_states_are_of_length_one_and_a_token_finds_itself() -> None:
    module = interaction("late")
    states = module.encode(QUERIES)
    torch.testing.assert_close(states.norm(dim=2), (QUERIES != 0).float())
    same = module.pair(states, states)
    assert isinstance(module, LateInteraction)
    similarity = same[:, 2 * module.compare.out_features]  # the weighted mean of each query token's best match
    torch.testing.assert_close(similarity, torch.ones(3))


def test_cross_is_the_encoder_on_the_joined_pair() -> None:
    module = interaction("cross")
    joined = torch.tensor([[2, 7, 8, 3, 7, 11, 12, 3]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        hidden = module.encoder.model(input_ids=joined, token_type_ids=types).last_hidden_state  # type: ignore[operator, union-attr]
        torch.testing.assert_close(pairs(module, QUERIES[:1], TITLES[:1]), hidden.mean(1))


def test_cross_leaves_out_the_special_tokens_of_the_single_texts() -> None:
    module = interaction("cross")
    with_separators = torch.tensor([[2, 7, 8, 3, 0]]), torch.tensor([[2, 7, 11, 12, 3, 0, 0]])
    torch.testing.assert_close(pairs(module, *with_separators), pairs(module, QUERIES[:1], TITLES[:1]))


def test_cross_reads_each_distinct_pair_once() -> None:
    module, read = interaction("cross"), []
    module.encoder.model.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda model, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    twice = torch.tensor([0, 1, 0, 2, 1])
    found = pairs(module, QUERIES[twice], TITLES[twice])
    assert sum(read) == 3
    torch.testing.assert_close(found[0], found[2])


def test_cross_works_without_token_types() -> None:
    plain = TextEncoder.from_config(model_type="distilbert", vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16).eval()
    assert pairs(CrossInteraction(plain), QUERIES, TITLES).shape == (3, 16)


def test_ngrams_of_one_token_are_the_mean_of_their_rows() -> None:
    module = ngrams(max_n=1)
    rows, there = module._hash(TITLES[:1], TITLES[:1] > 4, 1)
    mean = module.bags.embedding_bags["ngram"].weight[rows[there]].mean(0, keepdim=True)
    torch.testing.assert_close(module(TITLES[:1]), module.mlp(mean))
    assert there.tolist() == [[False, True, True, True, False, False]]


def test_ngrams_see_the_order_of_tokens_from_two_on() -> None:
    forth, back = torch.tensor([[2, 7, 8, 9]]), torch.tensor([[2, 9, 8, 7]])
    torch.testing.assert_close(ngrams(max_n=1)(forth), ngrams(max_n=1)(back))
    assert not torch.allclose(ngrams(max_n=2)(forth), ngrams(max_n=2)(back))


@pytest.mark.parametrize("kind", ALL)
def test_a_relevance_tower_stands_on_any_of_them(kind: str) -> None:
    relevance = TextRelevance(interaction(kind), match(), [8], 4).eval()
    out = relevance(
        relevance.pair(relevance.encode(QUERIES), relevance.encode(TITLES)), relevance.match_features(QUERIES, TITLES)
    )
    torch.testing.assert_close(out.log_pi.exp().sum(1), torch.ones(3))
