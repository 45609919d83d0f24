"""The ranker in a process of one's own: what it takes, what it gives, and what it keeps."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from serving_requests import plain_requests

from prectr_torchrec import Ranker
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.evaluation.explain import explain
from prectr_torchrec.serving.index import index_titles
from prectr_torchrec.serving.request import RequestSchema
from prectr_torchrec.serving.titles import TitleVectors, token_keys


@pytest.fixture(scope="module")
def requests(exported: Any) -> list[dict[str, Any]]:
    return plain_requests(exported.samples)


@pytest.fixture(scope="module")
def expected(exported: Any, ranker: Ranker) -> np.ndarray:
    return ranker.score(exported.samples)["click_probability"].to_numpy()


def test_plain_requests_score_as_samples_do(ranker: Ranker, requests: list[dict[str, Any]], expected: np.ndarray) -> None:
    scores = ranker.score(requests)
    np.testing.assert_allclose(np.concatenate([s.click_probability for s in scores]), expected, atol=1e-6)
    assert [s.request_id for s in scores] == [r["request_id"] for r in requests]
    assert all(s.relevance_probabilities.shape == (len(s.item_id), 4) for s in scores)


def test_a_request_alone_scores_as_among_others(ranker: Ranker, requests: list[dict[str, Any]], expected: np.ndarray) -> None:
    alone = [ranker.score(request).click_probability for request in requests]
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=1e-6)


def test_objects_and_lists_of_fields_are_the_same_request(ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    by_field = [
        {
            **r,
            **{
                key: {name: [row[name] for row in r[key]] for name in (r[key][0] if r[key] else ())}
                for key in ("history", "peers", "candidates")
            },
        }
        for r in requests
    ]
    for one, other in zip(ranker.score(requests), ranker.score(by_field), strict=True):
        np.testing.assert_array_equal(one.click_probability, other.click_probability)


def test_the_least_of_a_request_is_enough(ranker: Ranker) -> None:
    scores = ranker.score({"query": "red oak", "candidates": [{"item_id": 3, "title": "red oak"}, {"item_id": 4}]})
    assert scores.item_id.tolist() == [3, 4] and ((scores.click_probability > 0) & (scores.click_probability < 1)).all()
    table = ranker.score(pa.table({"query": ["red oak"], "candidate_item_id": [[3, 4]], "candidate_title": [["red oak", ""]]}))
    np.testing.assert_allclose(table["click_probability"].to_numpy(), scores.click_probability, atol=1e-6)


def test_the_largest_counters_still_give_a_probability(ranker: Ranker) -> None:
    counters = {f"{who}_{what}": [10**12] * 5 for who in ("user", "query", "group") for what in ("shown", "clicked", "examined")}
    events = [{"item_id": 1, "relevance": 3, "click": 1, "age": 2**62, "position": 2**15 - 1}] * 4
    rows = [{"item_id": -(2**63), "shown": 10**12, "clicked": 0}, {"item_id": 2**63 - 1, "clicked": 10**12, "examined": 10**12}]
    request = {"query": "red", "user_events": 2**31 - 1, **counters, "history": events, "peers": events, "candidates": rows}
    scores = ranker.score(request)
    assert np.isfinite(scores.click_probability).all() and np.isfinite(scores.relevance_probabilities).all()


def test_requests_without_candidates_get_empty_scores(ranker: Ranker) -> None:
    one = {"query": "red", "candidates": [{"item_id": 1}]}
    scores = ranker.score([{"query": "red", "candidates": []}, one, {"query": "oak", "candidates": []}])
    assert [len(s.click_probability) for s in scores] == [0, 1, 0]
    alone = ranker.score({"query": "red", "candidates": []}, explain=True)
    assert alone.ranking().tolist() == [] and alone.explanation == {"candidates": []}
    assert ranker.score([]) == []


def test_text_ids_are_those_of_the_preparation(ranker: Ranker) -> None:
    either = copy.copy(ranker)
    either.schema = RequestSchema(ranker.config.data)  # how the log writes ids is not known
    by_text = either.score({"query": "red", "candidates": [{"item_id": "sku-1"}]})
    by_hash = either.score({"query": "red", "candidates": [{"item_id": hash_id("sku-1")}]})
    assert by_text.item_id.tolist() == ["sku-1"]
    assert by_text.click_probability == by_hash.click_probability


def test_a_grade_wins_over_a_prediction_of_the_same_candidate(ranker: Ranker) -> None:
    event = {"item_id": 3, "title": "red lamp", "relevance": 1.0}
    candidate, predicted = {"item_id": 7, "title": "red lamp", "relevance": 3.0}, [0.7, 0.1, 0.1, 0.1]
    plain = ranker.score({"query": "red", "history": [event], "candidates": [candidate]})
    both = {"history": [event | {"predicted": predicted}], "candidates": [candidate | {"predicted": predicted}]}
    assert ranker.score({"query": "red", **both}).click_probability == plain.click_probability


def test_null_and_zero_are_nobody(ranker: Ranker) -> None:
    request = {"query": "red", "candidates": [{"item_id": 7, "title": "red lamp", "brand_id": None}]}
    scores = [ranker.score({**request, "user_id": user}).click_probability.tolist() for user in (None, 0, "0")]
    assert scores[0] == scores[1] == scores[2]


def test_the_ranking_is_best_first(ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    scores = ranker.score(max(requests, key=lambda r: len(r["candidates"])))
    assert (np.diff(scores.click_probability[scores.ranking()]) <= 0).all()


def test_an_explanation_is_that_of_the_run(exported: Any, ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    request = max(requests, key=lambda r: len(r["history"]) * len(r["peers"]))
    told = ranker.score(request, explain=True).explanation
    whole = explain(exported.run, exported.data, request["request_id"])
    assert told is not None and json.loads(json.dumps(told)) == told
    assert told["own_history"]["events"] == whole["own_history"]["events"] > 0
    for one, other in zip(told["candidates"], whole["candidates"], strict=True):
        assert one["item_id"] == other["item_id"] and one["effect_own"] == pytest.approx(other["effect_own"], abs=1e-5)
        assert one["effect_peers_by_level"] == pytest.approx(other["effect_peers_by_level"], abs=1e-5)
        assert one["click_by_level"] == pytest.approx(other["click_by_level"], abs=1e-5)


def test_a_past_that_is_not_there_has_no_effect(ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    request = max(requests, key=lambda r: len(r["history"]) * len(r["peers"]))
    fields_of = {"effect_own": ("user_", "history"), "effect_peers": ("query_", "group_", "peers")}
    for name, fields in fields_of.items():
        newcomer = {field: value for field, value in request.items() if not field.startswith(fields)}
        explanation = ranker.score({"query": request["query"], **newcomer}, explain=True).explanation
        assert explanation is not None and len(explanation["candidates"]) == len(request["candidates"])
        for candidate in explanation["candidates"]:
            assert candidate.pop(name) == 0 and candidate.pop(f"{name}_by_level") == [0] * 4
            other = "effect_peers" if name == "effect_own" else "effect_own"
            assert candidate[other] != 0


def test_threads_score_and_explain_as_one_does(ranker: Ranker, requests: list[dict[str, Any]]) -> None:
    wanted = [ranker.score(request, explain=True) for request in requests[:6]]
    found: dict[tuple[int, int], Any] = {}

    def work(number: int) -> None:
        for i, request in enumerate(requests[:6]):
            found[number, i] = ranker.score(request, explain=i % 2 == number % 2)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, i), scores in found.items():
        np.testing.assert_allclose(scores.click_probability, wanted[i].click_probability, atol=1e-6)
        if scores.explanation is not None:
            assert [c["item_id"] for c in scores.explanation["candidates"]] == [
                c["item_id"]
                for c in wanted[i].explanation["candidates"]  # type: ignore[index]
            ]
    assert len(found) == 24


def test_a_title_is_encoded_once_and_the_one_not_used_for_longest_goes() -> None:
    encoded: list[int] = []

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        encoded.extend(tokens[:, 0].tolist())
        return tokens.float() * 2

    titles = TitleVectors(encode, capacity=3)
    rows = {n: torch.tensor([[n, n]]) for n in range(6)}
    for n in (1, 2, 3, 1, 4, 1, 2):  # 4 takes the place of 2, 2 that of 3
        assert torch.equal(titles(rows[n]), rows[n] * 2.0)
    assert encoded == [1, 2, 3, 4, 2] and len(titles) == 3
    many = torch.cat([rows[n] for n in (5, 1, 0, 3, 4)])
    assert torch.equal(titles(many), many * 2.0) and len(titles) == 3


def test_an_index_warms_the_titles_and_changes_no_score(exported: Any, tmp_path: Path, expected: np.ndarray) -> None:
    folder = tmp_path / "indexed"
    shutil.copytree(exported.folder, folder)
    titles = sorted(set(exported.samples["candidate_title"].combine_chunks().flatten().to_pylist()))
    pq.write_table(pa.table({"title": pa.array([*titles, titles[0]], pa.large_string())}), tmp_path / "items.parquet")
    assert index_titles(Ranker.load(folder), folder, tmp_path / "items.parquet") == len(titles)
    warm = Ranker.load(folder)
    assert warm.titles is not None and len(warm.titles) == len(titles)
    np.testing.assert_allclose(warm.score(exported.samples)["click_probability"].to_numpy(), expected, atol=1e-6)
    assert warm.titles.misses == 0
    small = Ranker.load(folder, title_vectors=5)
    np.testing.assert_allclose(small.score(exported.samples)["click_probability"].to_numpy(), expected, atol=1e-6)
    assert small.titles is not None and len(small.titles) == 5


def test_equal_tokens_have_equal_keys() -> None:
    keys = token_keys(torch.tensor([[1, 2, 0], [1, 2, 0], [1, 0, 0], [0, 0, 0]]))
    assert keys[0] == keys[1] and len({*keys}) == 3


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported ranker"):
        Ranker.load(tmp_path)


def test_the_ranker_beside_it_scores_the_same_with_texts_of_its_own(ranker: Ranker) -> None:
    request = {"query": "a query of nobody else", "candidates": [{"item_id": i, "title": f"Oak lamp {i}"} for i in range(5)]}
    np.testing.assert_array_equal(ranker.aside.score(request).click_probability, ranker.score(request).click_probability)
    assert ranker.aside is ranker.aside and ranker.aside.titles is ranker.titles
