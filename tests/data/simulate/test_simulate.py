"""The simulated log: its layout, its determinism, and that each planted effect can be switched off by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from prectr_torchrec.data.simulate.simulate import BIAS, CENTRE, SLOPE, simulate

SMALL: dict[str, Any] = {"requests": 600, "users": 60, "queries": 50, "items": 400, "seed": 3}
FILES = ("raw/impressions", "raw/items", "raw/queries", "raw/judgments", "eval/oracle", "eval/judgments_unseen_queries")
PLANTED = ("price", "tags", "rating", "image", "context", "engine", "description")
MULTIPLIERS = ("strictness", "query_strictness", "taste", "quality")


def read(root: Path, name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(root / f"{name}.parquet")
    return {column: table[column].to_numpy() for column in table.column_names}


def expected_probability(oracle: dict[str, np.ndarray], **multipliers: float) -> np.ndarray:
    """The documented formula on the oracle's own columns."""
    a = dict.fromkeys(MULTIPLIERS, 1.0) | multipliers
    slope = SLOPE + a["strictness"] * oracle["user_strictness"] + a["query_strictness"] * oracle["query_strictness"]
    logit = BIAS + np.maximum(0, slope) * (oracle["relevance"] - CENTRE)
    logit += a["taste"] * oracle["taste"] + a["quality"] * oracle["quality"]
    return 1 / (1 + np.exp(-logit))


def expected_auc(probability: np.ndarray, score: np.ndarray) -> float:
    """AUC with each row counted as clicked with its probability and as skipped with the rest."""
    labels = np.repeat([1, 0], len(score))
    return float(roc_auc_score(labels, np.tile(score, 2), sample_weight=np.concatenate([probability, 1 - probability])))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("simulated")
    simulate(root, **SMALL)
    return root


@pytest.fixture(scope="module")
def full_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full")
    simulate(root)
    return root


def test_same_seed_gives_the_same_bytes(log: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **SMALL)
    for name in (*(f"{file}.parquet" for file in FILES), "meta.json"):
        assert (tmp_path / name).read_bytes() == (log / name).read_bytes()


def test_another_seed_gives_another_log(log: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **{**SMALL, "seed": 4})
    assert (tmp_path / "raw/impressions.parquet").read_bytes() != (log / "raw/impressions.parquet").read_bytes()


def test_every_file_says_that_it_is_simulated(log: Path) -> None:
    assert all(pq.read_schema(log / f"{file}.parquet").metadata[b"simulated"] == b"true" for file in FILES)
    assert json.loads((log / "meta.json").read_text(encoding="utf-8"))["simulated"] is True
    assert "Simulated" in (log / "README.txt").read_text(encoding="utf-8")


def test_raw_columns_are_those_of_a_shop(log: Path) -> None:
    assert pq.read_schema(log / "raw/impressions.parquet").names == [
        "request_id",
        "timestamp",
        "user_id",
        "query_id",
        "item_id",
        "position",
        "click",
    ]
    assert pq.read_schema(log / "raw/items.parquet").names == ["item_id", "title", "category_id", "brand_id"]
    assert pq.read_schema(log / "raw/queries.parquet").names == ["query_id", "query"]
    assert pq.read_schema(log / "raw/judgments.parquet").names == ["query_id", "item_id", "relevance"]


def test_nothing_of_the_oracle_is_in_the_raw_folder(log: Path) -> None:
    assert sorted(path.stem for path in (log / "raw").iterdir()) == ["impressions", "items", "judgments", "queries"]


def test_impressions_are_ordered_and_distinct(log: Path) -> None:
    rows = read(log, "raw/impressions")
    assert (np.diff(rows["timestamp"]) >= 0).all()
    assert len(set(zip(rows["request_id"], rows["item_id"], strict=True))) == len(rows["item_id"])
    starts = np.nonzero(np.diff(rows["request_id"], prepend=-1))[0]
    counts = np.diff(starts, append=len(rows["request_id"]))
    assert (rows["position"] == np.concatenate([np.arange(1, n + 1) for n in counts])).all()
    assert (counts.min(), counts.max()) == (1, 6)


def test_every_id_of_the_log_is_in_its_table(log: Path) -> None:
    rows = read(log, "raw/impressions")
    for column, table in (("item_id", "raw/items"), ("query_id", "raw/queries")):
        assert np.isin(rows[column], read(log, table)[column]).all()


def test_counts_in_meta_are_those_of_the_files(log: Path) -> None:
    counts = json.loads((log / "meta.json").read_text(encoding="utf-8"))["counts"]
    for file in FILES:
        assert counts[file.split("/")[1]] == pq.read_metadata(log / f"{file}.parquet").num_rows
    assert counts["clicks"] == read(log, "raw/impressions")["click"].sum()


def test_oracle_covers_the_test_requests_and_marks_what_was_shown(log: Path) -> None:
    rows, oracle = read(log, "raw/impressions"), read(log, "eval/oracle")
    test = rows["timestamp"] >= json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    shown = set(zip(rows["request_id"][test], rows["item_id"][test], strict=True))
    exposed = oracle["exposed"]
    assert shown == set(zip(oracle["request_id"][exposed], oracle["item_id"][exposed], strict=True))


def test_judgments_leave_a_tenth_of_queries_and_of_pairs_out(full_log: Path) -> None:
    queries, judged = read(full_log, "raw/queries")["query_id"], read(full_log, "raw/judgments")
    unseen = read(full_log, "eval/judgments_unseen_queries")
    assert len(np.unique(judged["query_id"])) == 0.9 * len(queries)
    assert len(judged["query_id"]) / (360 * 24) == pytest.approx(0.9, abs=0.02)
    assert len(np.unique(unseen["query_id"])) == 0.1 * len(queries)
    assert not np.isin(read(full_log, "raw/impressions")["query_id"], unseen["query_id"]).any()
    assert not np.isin(judged["query_id"], unseen["query_id"]).any()


def test_grades_are_thirds_between_one_and_three(log: Path) -> None:
    grades = read(log, "raw/judgments")["relevance"]
    assert set(np.unique(np.rint(3 * grades))) <= set(range(3, 10))
    assert np.allclose(3 * grades, np.rint(3 * grades))


def test_grades_follow_from_the_words(full_log: Path) -> None:
    judged = read(full_log, "eval/judgments_unseen_queries")
    queries = dict(zip(*read(full_log, "raw/queries").values(), strict=True))
    items = read(full_log, "raw/items")
    titles = dict(zip(items["item_id"], items["title"], strict=True))
    words = [queries[query].split() for query in judged["query_id"]]
    overlap = [np.mean([w in titles[i].lower() for w in ws]) for ws, i in zip(words, judged["item_id"], strict=True)]
    assert np.corrcoef(overlap, judged["relevance"])[0, 1] > 0.6


def test_probability_is_the_documented_formula_of_its_parts(log: Path) -> None:
    oracle = read(log, "eval/oracle")
    np.testing.assert_allclose(oracle["probability"], expected_probability(oracle), rtol=1e-12)


@pytest.mark.parametrize("effect", MULTIPLIERS)
def test_an_effect_switched_off_has_no_part_in_the_probability(effect: str, log: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **SMALL, **{effect: 0.0})
    oracle = read(tmp_path, "eval/oracle")
    np.testing.assert_allclose(oracle["probability"], expected_probability(oracle, **{effect: 0.0}), rtol=1e-12)
    assert not np.allclose(oracle["probability"], read(log, "eval/oracle")["probability"])


@pytest.mark.parametrize("effect", [*MULTIPLIERS, "position"])
def test_an_effect_switched_off_leaves_all_but_clicks_as_it_was(effect: str, log: Path, tmp_path: Path) -> None:
    simulate(tmp_path, **SMALL, **{effect: 0.0})
    for file in FILES:
        before, after = pq.read_table(log / f"{file}.parquet"), pq.read_table(tmp_path / f"{file}.parquet")
        changing = ["click", "probability", *["examination"] * (effect == "position")]
        changing = [column for column in changing if column in before.column_names]
        assert after.drop_columns(changing).equals(before.drop_columns(changing))
    assert (read(tmp_path, "raw/impressions")["click"] != read(log, "raw/impressions")["click"]).any()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_column_moves_clicks_as_the_oracle_says_and_leaves_the_rest_as_it_was(
    name: str, log: Path, tmp_path: Path
) -> None:
    simulate(tmp_path, **SMALL, **{name: 1.5})
    oracle = read(tmp_path, "eval/oracle")
    logit = np.log(expected_probability(oracle) / (1 - expected_probability(oracle))) + 1.5 * oracle[f"{name}_effect"]
    np.testing.assert_allclose(oracle["probability"], 1 / (1 + np.exp(-logit)), rtol=1e-9)
    assert oracle[f"{name}_effect"].std() > 0.2
    for file in FILES:
        before, after = pq.read_table(log / f"{file}.parquet"), pq.read_table(tmp_path / f"{file}.parquet")
        kept = [column for column in before.column_names if column not in ("click", "probability")]
        assert after.select(kept).equals(before.select(kept))
    assert f"{name}_effect" not in read(log, "eval/oracle")


@pytest.fixture(scope="module")
def planted_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    simulate(root, **SMALL, **dict.fromkeys(PLANTED, 1.0))
    return root


def of_oracle(root: Path, column: str) -> np.ndarray:
    """A column of items, for each row of the oracle."""
    items = read(root, "raw/items")
    values = dict(zip(items["item_id"], items[column], strict=True))
    return np.array([values[item] for item in read(root, "eval/oracle")["item_id"]])


def test_prices_cost_clicks_of_users_who_mind(planted_log: Path) -> None:
    paid, effect = of_oracle(planted_log, "price"), read(planted_log, "eval/oracle")["price_effect"]
    known = ~np.isnan(paid)
    assert (paid[known] > 0).all() and 0.8 < known.mean() < 1
    assert np.corrcoef(np.log(paid[known]), effect[known])[0, 1] < -0.3


def test_some_items_have_no_tags_and_those_gain_nothing(planted_log: Path) -> None:
    oracle, items = read(planted_log, "eval/oracle"), pq.read_table(planted_log / "raw/items.parquet")
    tags = items["tags"].to_pylist()
    empty = np.mean([not of_one for of_one in tags])
    assert 0 < empty < 0.3 and max(map(len, tags)) <= 4 and all(len(set(of_one)) == len(of_one) for of_one in tags)
    without = {item for item, of_one in zip(items["item_id"].to_pylist(), tags, strict=True) if not of_one}
    assert {effect for item, effect in zip(oracle["item_id"], oracle["tags_effect"], strict=True) if item in without} == {0.0}


def test_ratings_tell_how_good_items_are_and_some_items_have_none(planted_log: Path) -> None:
    stars, effect = of_oracle(planted_log, "rating"), read(planted_log, "eval/oracle")["rating_effect"]
    known = ~np.isnan(stars)
    assert 0.65 < known.mean() < 0.85 and stars[known].min() >= 1 and stars[known].max() <= 5
    assert np.corrcoef(stars[known], effect[known])[0, 1] > 0.95
    assert effect[~known].std() > 0.4  # they are as good or bad as the others


def test_images_carry_what_users_like(planted_log: Path) -> None:
    images = pq.read_table(planted_log / "raw/items.parquet")["image"].to_pylist()
    assert {len(image) for image in images if image} == {16} and 0 < np.mean([not image for image in images]) < 0.15
    place = {item: number for number, item in enumerate(read(planted_log, "raw/items")["item_id"])}
    oracle = read(planted_log, "eval/oracle")
    image = [images[place[item]] for item in oracle["item_id"]]
    seen = np.array([of_one is not None for of_one in image])
    matrix = np.array([of_one for of_one in image if of_one])
    fitted = matrix @ np.linalg.lstsq(matrix, oracle["image_effect"][seen], rcond=None)[0]
    assert np.corrcoef(fitted, oracle["image_effect"][seen])[0, 1] > 0.4  # what all like; users differ in the rest


def test_devices_and_hours_are_those_of_a_request(planted_log: Path) -> None:
    rows = read(planted_log, "raw/impressions")
    first = np.unique(rows["request_id"], return_index=True, return_inverse=True)[1:]
    assert (rows["device"] == rows["device"][first[0]][first[1]]).all()
    assert (rows["hour"] == rows["timestamp"] // 3600 % 24).all()
    assert set(rows["device"]) == {"phone", "desktop", "tablet"}
    rate = {device: rows["click"][rows["device"] == device].mean() for device in ("phone", "desktop")}
    assert rate["desktop"] > rate["phone"]


def test_the_engine_knows_what_nothing_else_tells(planted_log: Path) -> None:
    rows, oracle = read(planted_log, "raw/impressions"), read(planted_log, "eval/oracle")
    score = dict(zip(zip(rows["request_id"], rows["item_id"], strict=True), rows["engine_score"], strict=True))
    shown = np.flatnonzero(oracle["exposed"])
    scores = [score[key] for key in zip(oracle["request_id"][shown], oracle["item_id"][shown], strict=True)]
    effect, grade = oracle["engine_effect"][shown], oracle["relevance"][shown]
    assert np.corrcoef(scores, effect)[0, 1] > 0.6
    assert abs(np.corrcoef(grade, effect)[0, 1]) < 0.2


def test_descriptions_name_uses_that_some_queries_name(planted_log: Path) -> None:
    text, oracle = of_oracle(planted_log, "description"), read(planted_log, "eval/oracle")
    titles, effect = of_oracle(planted_log, "title"), oracle["description_effect"]
    searched = dict(zip(*(read(planted_log, "raw/queries")[name] for name in ("query_id", "query")), strict=True))
    requests = read(planted_log, "raw/impressions")
    query = {request: searched[of] for request, of in zip(requests["request_id"], requests["query_id"], strict=True)}
    assert 0.1 < (text == "").mean() < 0.3 and (effect[text == ""] == 0).all() and set(effect) == {0.0, 2.0}
    for row in np.flatnonzero(effect):
        uses = [use.split() for use in text[row].removeprefix("Serves as ").removesuffix(" too.").split(" or ")]
        assert any(kind in query[oracle["request_id"][row]] for kind, _ in uses) and uses[0][1] in titles[row].lower()


def test_labels_follow_clicks_by_what_the_oracle_says_and_leave_the_rest_as_it_was(log: Path, tmp_path: Path) -> None:
    large = {**SMALL, "requests": 4000}
    simulate(tmp_path / "a", **large, labels=1.0, price=1.0)
    simulate(tmp_path / "b", **large, price=1.0)
    for file in FILES:
        before, after = pq.read_table(tmp_path / f"b/{file}.parquet"), pq.read_table(tmp_path / f"a/{file}.parquet")
        assert after.select(before.column_names).equals(before)
    table, oracle = pq.read_table(tmp_path / "a/raw/impressions.parquet"), read(tmp_path / "a", "eval/oracle")
    rows = {name: table[name].to_numpy() for name in table.column_names}
    assert table.column_names[-5:] == ["click_time", "cart", "cart_time", "order", "order_time"]
    before_it = rows["timestamp"].astype(float)
    for name, follows in (("click", None), ("cart", "click"), ("order", "cart")):
        time, happened = rows[f"{name}_time"], rows[name] == 1
        assert (np.isnan(time) == ~happened).all() and (time[happened] > before_it[happened]).all()
        assert follows is None or (rows[follows][happened] == 1).all()
        before_it = time
    hours = (rows["order_time"] - rows["cart_time"])[rows["order"] == 1] / 3600
    assert 0.5 < np.median(hours) < 4 and 0.1 < rows["cart"].sum() / rows["click"].sum() < 0.5
    assert 0.2 < rows["order"].sum() / rows["cart"].sum() < 0.6
    shown = {key: place for place, key in enumerate(zip(rows["request_id"], rows["item_id"], strict=True))}
    exposed = np.flatnonzero(oracle["exposed"])
    at = [shown[key] for key in zip(oracle["request_id"][exposed], oracle["item_id"][exposed], strict=True)]
    for name in ("cart", "order"):
        expected = (oracle["examination"] * oracle[f"{name}_probability"])[exposed]
        assert rows[name][at].sum() == pytest.approx(expected.sum(), abs=4 * np.sqrt(expected.sum()))
        assert roc_auc_score(rows[name][at], expected) > 0.7
    assert "cart" not in read(log, "raw/impressions") and "cart_probability" not in read(log, "eval/oracle")


def test_without_the_position_effect_all_positions_are_examined(full_log: Path, tmp_path: Path) -> None:
    simulate(tmp_path, position=0.0)

    def ratio(root: Path) -> float:
        rows = read(root, "raw/impressions")
        return float(rows["click"][rows["position"] == 6].mean() / rows["click"][rows["position"] == 1].mean())

    assert ratio(tmp_path) > 2 * ratio(full_log)
    without, oracle = (pq.read_table(root / "eval/oracle.parquet") for root in (tmp_path, full_log))
    assert without.drop_columns("examination").equals(oracle.drop_columns("examination"))
    for table, exponent in ((without, 0.0), (oracle, 0.5)):
        examination = table["examination"].to_numpy()
        assert (np.isnan(examination) == ~table["exposed"].to_numpy()).all()
        assert np.nanmax(examination) == 1 and np.nanmin(examination) == pytest.approx(6**-exponent)


def test_defaults_leave_room_above_the_grade(full_log: Path) -> None:
    oracle = read(full_log, "eval/oracle")
    shown = {name: column[oracle["exposed"]] for name, column in oracle.items()}
    assert 0.70 < expected_auc(shown["probability"], shown["relevance"]) < 0.76
    assert expected_auc(shown["probability"], shown["probability"]) > 0.85
    assert read(full_log, "raw/impressions")["click"].mean() == pytest.approx(0.25, abs=0.04)


def test_test_rows_come_from_users_of_every_activity(full_log: Path) -> None:
    rows = read(full_log, "raw/impressions")
    train = rows["timestamp"] < json.loads((full_log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    users, counts = np.unique(rows["user_id"][train], return_counts=True)
    events = dict(zip(users, counts, strict=True))
    activity = np.array([events.get(user, 0) for user in rows["user_id"][~train]])
    assert (np.histogram(activity, [0, 1, 20, 100, 10**9])[0] > 200).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requests": 0}, "requests is 0; it must be at least 1"),
        ({"taste": -1.0}, "taste is -1.0; a multiplier is 0"),
        ({"price": -1.0}, "price is -1.0; a multiplier is 0"),
        ({"engine": -1.0}, "engine is -1.0; a multiplier is 0"),
        ({"labels": -1.0}, "labels is -1.0; a multiplier is 0"),
        ({"items": 5}, "items is 5; a query's pool alone takes 24"),
        ({"queries": 100_000}, "queries is 100000; the vocabulary is good for 10000"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(tmp_path, **{**SMALL, **arguments})


def test_one_request_is_enough(tmp_path: Path) -> None:
    meta = simulate(tmp_path, requests=1, users=1, queries=1, items=24)
    assert 1 <= meta["counts"]["impressions"] <= 6
