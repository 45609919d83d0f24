"""A ranking against the logged order: by definition, and against a truth that the clicks do not show."""

import numpy as np
import pytest

from prectr_torchrec import metrics as m
from prectr_torchrec.evaluation.comparison import MAX_WEIGHT, compare_with_logged_order

REQUESTS, CANDIDATES = 4000, 6
EXAMINATION = np.exp(-0.4 * np.arange(CANDIDATES)).tolist()


def log(model_noise: float, logged_noise: float, requests: int = REQUESTS) -> dict[str, np.ndarray]:
    """Clicks on an order by a noisy view of the true chance, examined from the top, and a model with a view of its own."""
    rng = np.random.default_rng(0)
    chance = rng.beta(1, 4, (requests, CANDIDATES))
    logged = chance + rng.normal(0, logged_noise, chance.shape)
    position = (-logged).argsort(1).argsort(1) + 1
    click = rng.random(chance.shape) < chance * np.array(EXAMINATION)[position - 1]
    model = chance + rng.normal(0, model_noise, chance.shape)
    columns = {"score": model, "click": click.astype(float), "position": position, "chance": chance}
    return {name: column.ravel() for name, column in columns.items()} | {"request": np.arange(requests).repeat(CANDIDATES)}


def compared(rows: dict[str, np.ndarray], examination=EXAMINATION):
    given = (rows[name] for name in ("score", "click", "position", "request"))
    found = compare_with_logged_order(*given, examination=examination)
    assert found is not None
    return found


def test_corrected_auc_is_that_of_the_click_chance_at_the_first_position():
    rows = log(model_noise=0.1, logged_noise=0.15)
    found = compared(rows)
    truth = {"model": m.auc(rows["score"], rows["chance"]), "logged_order": m.auc(-rows["position"] * 1.0, rows["chance"])}
    for order, expected in truth.items():
        assert found["position_corrected"]["auc"][order] == pytest.approx(expected, abs=0.02)
        assert abs(found["logged"]["auc"][order] - expected) > 0.03


def test_a_better_model_that_logged_clicks_call_worse_is_better():
    found = compared(log(model_noise=0.1, logged_noise=0.15))
    assert found["logged"]["ndcg@10"]["interval"][1] < 0
    assert found["verdict"]["outcome"] == "better"
    difference = found["position_corrected"]["ndcg@10"]["difference"]
    assert found["verdict"]["text"].startswith(f"better than the logged order by {difference:.4f} (NDCG@10, 95 % interval +")


def test_a_worse_model_is_worse():
    found = compared(log(model_noise=0.5, logged_noise=0.05))
    assert found["verdict"]["outcome"] == "worse" and found["verdict"]["text"].startswith("worse than the logged order by 0.")


def test_few_clicks_do_not_distinguish():
    found = compared(log(model_noise=0.14, logged_noise=0.15, requests=60))
    low, high = found["position_corrected"]["ndcg@10"]["interval"]
    assert low < 0 < high and found["verdict"]["outcome"] == "not distinguished"


def test_the_interval_covers_the_difference_of_other_draws():
    """Of 40 logs of the same kind, the 95 % interval of all but a few holds the mean difference."""
    rows = log(model_noise=0.1, logged_noise=0.15)
    parts = [rows["request"] // 100 == part for part in range(40)]
    found = [compared({name: column[part] for name, column in rows.items()})["logged"]["gauc_request"] for part in parts]
    mean = np.mean([f["difference"] for f in found])
    assert 34 <= sum(f["interval"][0] <= mean <= f["interval"][1] for f in found) < 40


def test_corrected_measures_equal_their_definition():
    rng = np.random.default_rng(1)
    request, position = np.array([0, 0, 0, 1, 1]), np.array([1, 2, 3, 1, 2])
    click, score = np.array([0.0, 1, 0, 1, 0]), rng.permutation(5) * 1.0
    found = compare_with_logged_order(score, click, position, request, examination=[1.0, 0.5, 0.02])
    assert found is not None
    gain = click * np.array([1, 2, 1, 1, 2])
    pairs = [
        (gain[i] * (1 - gain[j]), score[i] > score[j]) for i in range(5) for j in range(5) if request[i] == request[j] and i != j
    ]
    expected = sum(weight for weight, won in pairs if won) / sum(weight for weight, _ in pairs)
    assert found["position_corrected"]["pair_accuracy"]["model"] == pytest.approx(expected)
    place = np.array([np.sum(score[request == r] > s) for s, r in zip(score, request, strict=True)])
    ideal = 2 + 1  # the clicked row of each request first
    assert found["position_corrected"]["ndcg@10"]["model"] == pytest.approx((gain / np.log2(place + 2)).sum() / ideal)


def test_weights_are_limited_and_the_clicks_at_the_limit_counted():
    found = compare_with_logged_order(
        np.arange(4.0), np.array([1.0, 0, 0, 1]), np.array([1, 2, 1, 2]), np.array([0, 0, 1, 1]), examination=[1.0, 0.001]
    )
    assert found is not None and (found["max_weight"], found["clicks_at_max_weight"]) == (MAX_WEIGHT, 1)
    assert found["position_corrected"]["ndcg@3"]["logged_order"] == pytest.approx((1 + 10 / np.log2(3)) / 11)


def test_without_an_examination_the_verdict_says_that_clicks_favour_the_logged_order():
    found = compared(log(model_noise=0.1, logged_noise=0.15), examination=[1.0])
    assert found["position_corrected"] is None
    assert found["verdict"]["outcome"] == "worse" and "which favour it" in found["verdict"]["text"]


def test_rows_without_a_position_or_a_label_are_left_out():
    rows = log(model_noise=0.1, logged_noise=0.15, requests=100)
    more = {"score": [9.0, 9.0], "click": [1.0, np.nan], "position": [0, 1], "request": [500, 501], "chance": [0, 0]}
    assert compared({name: np.append(column, more[name]) for name, column in rows.items()}) == compared(rows)


@pytest.mark.parametrize("click", [[0.0, 0, 0, 0], [1.0, 1, 1, 1], [np.nan] * 4])
def test_clicks_of_one_class_compare_nothing(click):
    ids, place = np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2])
    assert compare_with_logged_order(np.arange(4.0), np.array(click), place, ids, examination=[1.0]) is None
