"""Every measure against a brute-force golden value, with ties, missing grades, empty classes and single rows."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from prectr_torchrec import metrics as m
from prectr_torchrec.data.levels import grade_levels

N = 60


def brute_auc(score: np.ndarray, label: np.ndarray) -> float:
    won = pairs = 0.0
    for i, j in itertools.product(range(len(score)), repeat=2):
        weight = label[i] * (1 - label[j])
        won += weight * (0.5 if score[i] == score[j] else float(score[i] > score[j]))
        pairs += weight
    return won / pairs


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "score": (rng.integers(1, 9, N) / 10).astype(np.float32),
        "click": rng.integers(0, 2, N).astype(np.float32),
        "soft": rng.random(N),
        "group": rng.integers(-4, 5, N) * 10**15,
        "grade": rng.choice([1.0, 1.33, 1.67, 2.0, 2.17, 2.33, 2.67, 3.0], N).astype(np.float32),
    }


@pytest.mark.parametrize("label", ["click", "soft"])
def test_auc_equals_all_pairs(rows, label):
    assert m.auc(rows["score"], rows[label]) == pytest.approx(brute_auc(rows["score"], rows[label]), abs=1e-12)


def test_auc_equals_scikit_learn(rows):
    assert m.auc(rows["score"], rows["click"]) == pytest.approx(sk.roc_auc_score(rows["click"], rows["score"]))


def test_auc_of_equal_scores_is_one_half(rows):
    assert m.auc(np.zeros(N), rows["soft"]) == pytest.approx(0.5)


def test_gauc_averages_groups_with_both_classes_by_their_rows(rows):
    values, weights = [], []
    for group in np.unique(rows["group"]):
        mine = rows["group"] == group
        if 0 < rows["click"][mine].sum() < mine.sum():
            values.append(brute_auc(rows["score"][mine], rows["click"][mine]))
            weights.append(mine.sum())
    assert m.gauc(rows["score"], rows["click"], rows["group"]) == pytest.approx(np.average(values, weights=weights))


def test_gauc_leaves_out_groups_of_one_class():
    score, click, user = np.array([0.9, 0.1, 0.5, 0.6]), np.array([1.0, 0.0, 0.0, 0.0]), np.array([1, 1, 2, 2])
    assert m.gauc(score, click, user) == 1.0


def test_pair_accuracy_equals_all_pairs_of_different_grades_within_a_query(rows):
    won = pairs = 0.0
    for i, j in itertools.combinations(range(N), 2):
        if rows["group"][i] == rows["group"][j] and rows["grade"][i] != rows["grade"][j]:
            right = (rows["score"][i] - rows["score"][j]) * (rows["grade"][i] - rows["grade"][j])
            won, pairs = won + (0.5 if right == 0 else float(right > 0)), pairs + 1
    assert m.pair_accuracy(rows["score"], rows["grade"], rows["group"]) == pytest.approx(won / pairs)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_ndcg_equals_scikit_learn_over_requests_with_gain(rows, k):
    expected = [
        sk.ndcg_score([rows["click"][mine]], [rows["score"][mine]], k=k)
        for mine in (rows["group"] == g for g in np.unique(rows["group"]))
        if mine.sum() > 1 and rows["click"][mine].any()
    ]
    assert m.ndcg(rows["score"], rows["click"], rows["group"], k) == pytest.approx(np.mean(expected))


def test_ndcg_shares_places_among_equal_scores():
    half = (1 + 1 / np.log2(3)) / 2
    assert m.ndcg(np.zeros(2), np.array([1.0, 0.0]), np.zeros(2), 10) == pytest.approx(half)


def test_log_loss_equals_scikit_learn(rows):
    assert m.log_loss(rows["score"], rows["click"]) == pytest.approx(sk.log_loss(rows["click"], rows["score"].astype(float)))


def test_log_loss_of_a_sure_mistake_is_finite():
    assert m.log_loss(np.array([1.0], np.float32), np.array([0.0])) == pytest.approx(-np.log(1e-7))


def test_normalized_entropy_of_the_observed_rate_is_one(rows):
    rate = np.full(N, rows["click"].mean(dtype=np.float64))
    assert m.normalized_entropy(rate, rows["click"].astype(float)) == pytest.approx(1.0)


def test_calibration_is_predicted_over_observed():
    assert m.calibration(np.array([0.5, 0.7]), np.array([1.0, 0.0])) == pytest.approx(1.2)


def test_calibration_by_position_names_what_was_not_logged_and_pools_the_deepest():
    position = np.array([0, 1, 1, 21, 40])
    found = m.calibration_by_position(np.full(5, 0.5), np.array([1.0, 1.0, np.nan, 0.0, 1.0]), position)
    assert [line["position"] for line in found] == ["not logged", "1", "21+"]
    assert [line["rows"] for line in found] == [1, 1, 2]
    assert [line["calibration"] for line in found] == [0.5, 0.5, 1.0]
    assert m.calibration_by_position(np.ones(1), np.zeros(1), np.ones(1, int))[0]["calibration"] is None


def test_reliability_bins_follow_the_prediction_and_hold_every_row(rows):
    bins = m.reliability(rows["score"], rows["click"], bins=7)
    assert [b["predicted"] for b in bins] == sorted(b["predicted"] for b in bins)
    assert sum(b["rows"] for b in bins) == N
    assert sum(b["rows"] * b["observed"] for b in bins) == pytest.approx(rows["click"].sum())


def test_spearman_equals_scipy_with_ties(rows):
    assert m.spearman(rows["score"], rows["grade"]) == pytest.approx(stats.spearmanr(rows["score"], rows["grade"])[0])


def test_quadratic_kappa_equals_scikit_learn():
    a, b = np.random.default_rng(5).integers(1, 5, (2, N))
    expected = sk.cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4])
    assert m.quadratic_kappa(a, b, 4) == pytest.approx(expected)


def test_share_of_the_way_runs_from_start_to_end():
    assert m.share_of_the_way(0.8, 0.7, 0.9) == pytest.approx(0.5)
    assert m.share_of_the_way(0.8, 0.7, None) is None


@pytest.mark.parametrize("size", [0, 1])
def test_measures_without_both_classes_are_none(size):
    ones, ids = np.ones(size), np.zeros(size, np.int64)
    assert m.auc(ones, ones) is None
    assert m.gauc(ones, ones, ids) is None
    assert m.normalized_entropy(ones, ones) is None
    assert m.pair_accuracy(ones, ones, ids) is None
    assert m.spearman(ones, ones) is None
    assert m.quadratic_kappa(ones.astype(int), ones.astype(int), 4) is None
    assert m.ndcg(ones, 0 * ones, ids, 3) is None
    assert m.calibration(ones, 0 * ones) is None


def test_ranking_metrics_use_labelled_rows_only(rows):
    click = np.where(np.arange(N) < 20, np.nan, rows["click"])
    some = m.ranking_metrics(rows["score"], click, rows["group"], rows["group"])
    assert some["rows"] == 40
    assert some["auc"] == pytest.approx(brute_auc(rows["score"][20:], rows["click"][20:]))


def test_click_measures_without_any_label_are_none(rows):
    click = np.full(N, np.nan)
    none = m.ranking_metrics(rows["score"], click, rows["group"], rows["group"]) | m.probability_metrics(rows["score"], click)
    assert {k for k, v in none.items() if v is not None} == {"rows", "clicks"}


def test_grade_ndcg_gives_the_lowest_grade_no_gain():
    score, request = np.array([0.9, 0.5, 0.1]), np.zeros(3)
    value = m.grade_ndcg(score, np.array([1.0, np.nan, 3.0]), request, grade_min=1.0)["grade_ndcg@3"]
    assert value == pytest.approx(1 / np.log2(3))


def test_relevance_metrics_of_a_perfect_tower_are_one(rows):
    level = grade_levels(rows["grade"], [1.5, 2.17, 2.84])
    found = m.relevance_metrics(
        np.eye(4)[level - 1], rows["grade"], rows["group"], boundaries=[1.5, 2.17, 2.84], level_grades=[1.2, 1.8, 2.5, 3]
    )
    assert found["auc"] == found["quadratic_kappa"] == 1.0
    assert found["pairs"] == N


@pytest.mark.parametrize(
    ("boundaries", "negative", "between", "positive"),
    [
        ([1.5, 2.17, 2.84], [1.0, 1.33, 1.67, 2.0], [2.33], [2.67, 3.0]),
        ([0.5, 1.5], [0.0], [1.0], [2.0]),
        ([0.5], [0.0], [], [1.0]),
    ],
)
def test_relevance_auc_leaves_out_the_lower_half_of_the_second_highest_level(boundaries, negative, between, positive):
    grade = np.array([*negative, *between, *positive], np.float32)
    probabilities = np.random.default_rng(6).dirichlet(np.ones(len(boundaries) + 1), len(grade))
    label = np.array([0.0] * len(negative) + [np.nan] * len(between) + [1.0] * len(positive))
    edges = np.array([grade.min(), *boundaries, grade.max()])
    level_grades = (edges[1:] + edges[:-1]) / 2
    expected, judged = probabilities @ level_grades, ~np.isnan(label)
    found = m.relevance_metrics(probabilities, grade, np.zeros(len(grade)), boundaries=boundaries, level_grades=level_grades)
    assert found["auc"] == pytest.approx(brute_auc(expected[judged], label[judged]))


def test_relevance_metrics_leave_out_missing_grades_and_missing_predictions():
    probabilities = np.array([[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9]])
    found = m.relevance_metrics(probabilities, np.array([np.nan, 1.0, 3.0]), np.zeros(3), boundaries=[2.0], level_grades=[1, 3])
    assert found["pairs"] == 1
    assert found["spearman"] is None


def test_nobody_known_is_no_user_to_rank_within() -> None:
    rng = np.random.default_rng(0)
    score, click, user = rng.random(200), (rng.random(200) < 0.5).astype(float), rng.integers(0, 4, 200)
    known = user != 0
    found = m.ranking_metrics(score, click, user, user)["gauc_user"]
    assert found == m.gauc(score[known], click[known], user[known]) != m.gauc(score, click, user)
