"""What a ranker reports of its parts: columns of predictions, and measures of them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_evaluation as build

from prectr_torchrec.evaluation.evaluate import format_metrics
from prectr_torchrec.evaluation.part_columns import meanings, part_columns
from prectr_torchrec.evaluation.parts import against_strictness, effect_by_strictness, rise
from prectr_torchrec.modules import ReportedPart


def test_the_columns_of_parts_are_those_that_the_ranker_reports(data):
    build.measure(data)
    plain = pq.read_schema(data.parent / "predictions.parquet").names
    effects = ["effect_own", "effect_own_slope", "effect_peers", "effect_peers_slope"]
    assert plain[-5:] == ["levels_in_order", *effects]
    build.measure(data, build.scored(personal=True), parts=build.PERSONAL)
    assert pq.read_schema(data.parent / "predictions.parquet").names == [
        *plain,
        "weight_own",
        "weight_peers",
        "weight_prior",
        "taste",
    ]
    found, scored = build.predicted_rows(data), next(iter(build.scored(personal=True)))
    places = [found["item_id"].index(item) for item in scored["item_id"]]
    for name in (*effects, "weight_own", "weight_prior"):
        assert [found[name][place] for place in places] == scored[name].tolist()
    build.measure(data, parts=build.columns(mixture=False))
    assert pq.read_schema(data.parent / "predictions.parquet").names == [*plain[:-5], "effect_own", "effect_peers"]


def test_effects_of_the_past_are_measured_for_strict_and_indifferent_users(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = build.measure(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=build.PERSONAL)["personal"]
    # users 0 to 6 are as strict as their number; grade 1 is level 1, 2 level 2, 3 level 4; the own effect is user times grade
    strict, indifferent = found["effect"]["strict"], found["effect"]["indifferent"]
    assert (strict["users"], indifferent["users"]) == (3, 3)
    assert 4 < strict["by_level"]["own"][0] < 6 and indifferent["by_level"]["own"][0] < 2
    assert strict["by_level"]["peers"] == indifferent["by_level"]["peers"] == [1.0, 2.0, None, 3.0]
    rows = [r for r in build.scored(personal=True) if r["user_id"][0] >= 4]
    effect, grade = (np.concatenate(x) for x in ([r["effect_own"] for r in rows], [1 + r["item_id"] % 3 for r in rows]))
    expected = [effect[grade == g].mean() if g else None for g in (1, 2, None, 3)]
    assert strict["by_level"]["own"] == [None if e is None else pytest.approx(e) for e in expected]


def test_the_share_of_rows_whose_levels_are_in_order_is_measured(data):
    found = build.measure(data, build.scored(personal=True), parts=build.PERSONAL)
    rows = np.concatenate([r["levels_in_order"] for r in build.scored(personal=True)])
    assert found["levels_in_order"] == pytest.approx(rows.mean()) and 0 < rows.mean() < 1
    assert f"{rows.mean():.2%} of rows" in format_metrics({"run": "small", **found})
    assert build.measure(data, parts=build.columns(mixture=False))["levels_in_order"] is None


def test_the_slope_of_the_own_effect_is_compared_with_the_users_strictness(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = build.measure(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=build.PERSONAL)
    # strictness u, mean slope u^2 and a half
    assert found["personal"]["slope"]["all"] == {"users": 7, "correlation": pytest.approx(1.0)}
    assert against_strictness(np.array([5.0, 1.0, 2.0]), np.array([1, 1, 2]), np.array([1.0, 1.0, 9.0])) == {
        "users": 2,
        "correlation": pytest.approx(-1.0),
    }
    assert against_strictness(np.ones(3), np.arange(3), np.arange(3.0)) == {}
    assert against_strictness(np.ones(3), np.arange(3), np.full(3, np.nan)) == {}


def test_the_rise_of_the_own_effect_with_the_candidates_grade_is_compared_with_the_users_strictness(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = build.measure(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=build.PERSONAL)
    # the effect of user u is u times the grade
    assert found["personal"]["rise"]["all"] == {"users": 7, "correlation": pytest.approx(1.0)}
    user, grade = np.array([1, 1, 1, 2, 2, 3, 3]), np.array([1, 2, 3, 1, np.nan, 2, 3])
    found = rise(np.array([1.0, 4.0, 7.0, 9.0, 5.0, 1.0, 0.0]), grade, user)
    np.testing.assert_allclose(found, [3, 3, 3, np.nan, np.nan, -1, -1])
    assert against_strictness(found, user, np.arange(7.0)) == {"users": 2, "correlation": pytest.approx(-1.0)}


def test_the_weights_are_measured_by_user_activity(data):
    found = build.measure(data, build.scored(personal=True), parts=build.PERSONAL)["personal"]
    assert list(found) == ["weights"] and list(found["weights"]) == ["0", "1-19", "20-99", "100+"]
    rows = [r for r in build.scored(personal=True) if r["user_id"][0] in build.SEGMENTS["100+"]]
    assert found["weights"]["100+"]["own"] == pytest.approx(np.concatenate([r["weight_own"] for r in rows]).mean())
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found["weights"].values())


def test_without_personal_parts_or_strictness_nothing_personal_is_measured(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    alike = build.measure(data, oracle=tmp_path / "oracle.parquet")["personal"]["effect"]  # every effect is zero
    assert {value for group in alike.values() for means in group["by_level"].values() for value in means} == {0.0, None}
    pq.write_table(pq.read_table(tmp_path / "oracle.parquet").drop(["user_strictness"]), tmp_path / "oracle.parquet")
    rows = build.scored(personal=True)
    assert build.measure(data, rows, oracle=tmp_path / "oracle.parquet", parts=build.PERSONAL)["personal"].keys() == {"weights"}


def test_parts_are_columns_that_say_what_they_mean_and_means_by_activity(data):
    shown = {"speed": ReportedPart("how fast it sells"), "sides": ReportedPart("two sides", width=2, names=("near", "far"))}
    shown |= {"curve": ReportedPart("a curve", width=3), "secret": ReportedPart("no column", where="explanations")}
    rows = [
        part | {name: part["item_id"] * np.float32(1) for name in ("speed", "near", "far")} | {"curve": np.ones((5, 3), "f4")}
        for part in build.scored()
    ]
    found = build.measure(data, rows, parts=part_columns(shown))
    table = pq.read_table(data.parent / "predictions.parquet")
    assert meanings(table.schema) == {"speed": "how fast it sells", "near": "two sides", "far": "two sides"}
    assert table["curve"].to_pylist() == [[1.0] * 3] * len(table) and "secret" not in table.column_names
    assert found["parts"]["speed"]["all"] == pytest.approx(table["item_id"].to_numpy().mean())
    assert found["parts"]["speed"].keys() == {"meaning", "all", "0", "1-19", "20-99", "100+"}


def test_a_ranker_without_levels_is_measured_without_them(data):
    found = build.measure(data, parts=[])
    assert "relevance_probabilities" not in build.predicted_rows(data) and found["relevance"] == {} and found["parts"] == {}
    assert found["clicks"] == build.measure(data)["clicks"]
    assert "relevance tower" not in format_metrics({"run": "small", **found})


def test_users_who_are_all_alike_are_in_no_third():
    alike = ({"own": np.ones(4)}, np.ones(4, np.int8), np.arange(4), np.full(4, 2.0))
    assert effect_by_strictness(*alike, 4) == {}
