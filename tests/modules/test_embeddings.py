"""What is looked up: one vector an id of a request, the sum of the ids of a candidate, and nothing where there is no id."""

from __future__ import annotations

import pytest
import torch
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule

from prectr_torchrec.modules import ReplicatedEmbeddingBagCollection, SearchEmbeddings

ITEM = EmbeddingConfig(name="item", num_embeddings=9, embedding_dim=4, feature_names=["candidate_item_id", "history_item_id"])
USER = EmbeddingConfig(name="user", num_embeddings=8, embedding_dim=4, feature_names=["user_id"])
TOKEN = EmbeddingBagConfig(name="token", num_embeddings=9, embedding_dim=8, feature_names=["title_tokens"])


def ids(**features: list[list[int]]) -> KeyedJaggedTensor:
    """A list of ids for each feature and row."""
    rows = [row for of_feature in features.values() for row in of_feature]
    values = torch.tensor([i for row in rows for i in row], dtype=torch.long)
    return KeyedJaggedTensor(list(features), values, lengths=torch.tensor([len(row) for row in rows]))


def test_features_of_one_table_read_its_rows_in_their_order() -> None:
    embeddings = SearchEmbeddings([ITEM], [])
    sequences, bags = embeddings(ids(candidate_item_id=[[3], [5, 4]], history_item_id=[[], [5]]), ids(title_tokens=[[], [], []]))
    table = embeddings.state_dict()["sequences.4.embeddings.item.weight"]
    assert sequences["candidate_item_id"].values().equal(table[[3, 5, 4]])
    assert sequences["history_item_id"].values().equal(table[[5]]) and sequences["history_item_id"].lengths().tolist() == [0, 1]
    assert bags == {}


def test_a_bag_is_the_sum_of_its_ids_and_zero_without_any() -> None:
    embeddings = SearchEmbeddings([], [TOKEN])
    sequences, bags = embeddings(ids(user_id=[[1]]), ids(title_tokens=[[7, 8, 7], [], [8]]))
    table = embeddings.state_dict()["bags.candidate.embedding_bags.token.weight"]
    torch.testing.assert_close(bags["title_tokens"], torch.stack([2 * table[7] + table[8], 0 * table[0], table[8]]))
    assert sequences == {}


def test_tables_of_several_widths_stand_side_by_side() -> None:
    wide = EmbeddingConfig(name="user", num_embeddings=8, embedding_dim=6, feature_names=["user_id"])
    sequences, _ = SearchEmbeddings([ITEM, wide], [])(ids(candidate_item_id=[[3]], history_item_id=[[]], user_id=[[1]]), ids())
    assert sequences["candidate_item_id"].values().shape == (1, 4) and sequences["user_id"].values().shape == (1, 6)


def test_a_bag_of_a_request_is_the_mean_of_its_ids_and_zero_without_any() -> None:
    past = EmbeddingBagConfig(
        name="past", num_embeddings=9, embedding_dim=3, feature_names=["history_brands"], pooling=PoolingType.MEAN
    )
    embeddings = SearchEmbeddings([ITEM], [TOKEN], request_bag_tables=[past])
    of_requests = ids(candidate_item_id=[[3], []], history_item_id=[[], []], history_brands=[[2, 4, 4], []])
    _, bags = embeddings(of_requests, ids(title_tokens=[[7]]))
    table = embeddings.state_dict()["bags.request.embedding_bags.past.weight"]
    torch.testing.assert_close(bags["history_brands"], torch.stack([(table[2] + 2 * table[4]) / 3, 0 * table[0]]))
    assert bags["title_tokens"].shape == (1, 8)


def test_a_weighted_bag_is_the_weighted_sum_beside_bags_without_weights() -> None:
    tags = EmbeddingBagConfig(name="tag", num_embeddings=9, embedding_dim=3, feature_names=["tags"])
    embeddings = SearchEmbeddings([], [TOKEN, tags], weighted=["tag"])
    both = ids(title_tokens=[[7], [8]], tags=[[1, 2], []])
    weights = torch.tensor([1.0, 1.0, 0.5, 2.0])
    keyed = KeyedJaggedTensor(both.keys(), both.values(), lengths=both.lengths(), weights=weights)
    _, bags = embeddings(ids(user_id=[[1]]), keyed)
    table = embeddings.state_dict()["bags.weighted_candidate.embedding_bags.tag.weight"]
    torch.testing.assert_close(bags["tags"], torch.stack([0.5 * table[1] + 2.0 * table[2], 0 * table[0]]))
    assert bags["title_tokens"].equal(embeddings.state_dict()["bags.candidate.embedding_bags.token.weight"][[7, 8]])


def test_averaging_bags_with_weights_is_refused() -> None:
    tags = EmbeddingBagConfig(name="tag", num_embeddings=9, embedding_dim=3, feature_names=["tags"], pooling=PoolingType.MEAN)
    with pytest.raises(ValueError, match="summed, not averaged: tag"):
        SearchEmbeddings([], [tags], weighted=["tag"])


def test_a_batch_of_one_request_without_a_past_trains_the_rows_that_it_has() -> None:
    embeddings = SearchEmbeddings([ITEM], [TOKEN])
    sequences, bags = embeddings(ids(candidate_item_id=[[3]], history_item_id=[[]]), ids(title_tokens=[[7]]))
    (sequences["candidate_item_id"].values().sum() + bags["title_tokens"].sum()).backward()
    gradients = {name.split(".")[3]: p.grad for name, p in embeddings.named_parameters()}
    assert {name: grad.any(1).nonzero().flatten().tolist() for name, grad in gradients.items() if grad is not None} == {
        "item": [3],
        "token": [7],
    }


def test_tables_with_managed_ids_stand_beside_the_others() -> None:
    managed = MCHManagedCollisionModule(
        zch_size=8,
        device=torch.device("cpu"),
        eviction_policy=DistanceLFU_EvictionPolicy(),
        eviction_interval=1,
        input_hash_size=2**40,
    )
    embeddings = SearchEmbeddings([ITEM, USER], [TOKEN], managed={"user": managed}).eval()
    known, raw = ids(candidate_item_id=[[3]], history_item_id=[[4]], user_id=[[2**39 + 1]]), ids(title_tokens=[[7]])
    sequences, bags = embeddings(known, raw)
    assert set(sequences) == {"candidate_item_id", "history_item_id", "user_id"} and set(bags) == {"title_tokens"}
    rows = embeddings.state_dict()
    assert sequences["user_id"].values().equal(rows[next(name for name in rows if name.endswith("user.weight"))][[7]])
    assert {".".join(name.split(".")[:2]) for name in rows} == {"sequences.4", "sequences.managed_4", "bags.candidate"}


@pytest.mark.parametrize("titles", [[[7, 8], []], [[], []]], ids=["some", "none"])
def test_a_replicated_collection_computes_what_a_collection_computes(titles: list[list[int]]) -> None:
    bags = ReplicatedEmbeddingBagCollection(tables=[TOKEN])
    table = bags.embedding_bags["token"].weight
    expected = torch.stack([table[torch.tensor(row, dtype=torch.long)].sum(0) for row in titles])
    torch.testing.assert_close(bags(ids(title_tokens=titles))["title_tokens"], expected)
