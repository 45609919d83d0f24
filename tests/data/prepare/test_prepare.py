"""What a request knows of its past, compared with a slow reference, and that it knows nothing else."""

from __future__ import annotations

import copy
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepared_logs import LABELLED, SMALL, TEXT, labelled_rows, run
from raw_logs import (
    as_id,
    random_log,
    random_predictions,
    read_split,
    reference_rows,
    write_log,
    write_scores,
    write_table,
)
from sample_files import write_tokenizer

from prectr_torchrec.config.data import DataConfig, Levels, RawLog, RawTable, Split
from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.levels import grade_levels, unpack_levels
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.prepare.summary import far_from_levels
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.schema import check_schema, read_manifest, sample_schema
from prectr_torchrec.data.tokenizer import DOCUMENT_FREQUENCY
from prectr_torchrec.serving.counters import PreferenceStatistics

TRAINED = ("user_trained", "query_trained", "group_trained")


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"history_events": "clicked"}, {"peer_minimum": 0}, {"peer_minimum": 100, "peer_length": 30}, {"examination": None}],
)
def test_every_field_equals_the_slow_reference(tmp_path: Path, text_ids: bool, overrides: dict[str, Any]) -> None:
    raw, data = random_log(1, text_ids=text_ids), DataConfig(**SMALL | overrides)
    run(raw, tmp_path, data)
    for found, expected in zip(labelled_rows(tmp_path), reference_rows(raw, data), strict=True):
        assert found == expected


@pytest.mark.parametrize("text_ids", [False, True])
def test_with_predicted_levels_every_field_equals_the_slow_reference(tmp_path: Path, text_ids: bool) -> None:
    raw, data = random_log(5, text_ids=text_ids), DataConfig(**SMALL)
    predicted = random_predictions(raw, data)
    manifest = run(raw, tmp_path, data, relevance=[write_scores(predicted, data, tmp_path / "scores")])
    judged = {(row["query_id"], row["item_id"]) for row in raw["judgments"]}
    assert manifest["rows"]["predicted pairs"] == len(predicted.keys() - judged)
    for found, expected in zip(labelled_rows(tmp_path), reference_rows(raw, data, predicted), strict=True):
        assert found == expected


def test_several_teachers_are_averaged(tmp_path: Path) -> None:
    raw, data = random_log(5), DataConfig(**SMALL)
    pairs = [(q["query_id"], i["item_id"]) for q in raw["queries"] for i in raw["items"]]
    one, other = ({pair: units for pair in pairs} for units in ([128, 0, 0, 0], [0, 0, 64, 64]))
    folders = [write_scores(predicted, data, tmp_path / name) for name, predicted in (("one", one), ("other", other))]
    run(raw, tmp_path, data, relevance=folders)
    packed = {value for row in labelled_rows(tmp_path) for value in row["candidate_predicted"]}
    assert packed == {0, int.from_bytes([64, 0, 32, 32], "little")}


def test_of_eight_levels_the_highest_can_be_sure(tmp_path: Path) -> None:
    raw = random_log(5)
    data = DataConfig(**SMALL, levels=Levels(boundaries=[1.1, 1.4, 1.7, 2.0, 2.3, 2.6, 2.9]))
    units = [0] * 7 + [128]
    predicted = {(q["query_id"], i["item_id"]): units for q in raw["queries"] for i in raw["items"]}
    run(raw, tmp_path, data, relevance=[write_scores(predicted, data, tmp_path / "scores")])
    packed = {value for row in labelled_rows(tmp_path) for value in row["candidate_predicted"]} - {0}
    assert packed == {int.from_bytes(units, "little", signed=True)}
    assert unpack_levels(np.array([*packed]), 8).tolist() == [[0] * 7 + [1]]


def test_unshown_candidates_have_predicted_levels_too(tmp_path: Path) -> None:
    raw, data = random_log(5), DataConfig(**SMALL)
    predicted = random_predictions(raw, data)
    wanted = [{"request_id": e["request_id"], "item_id": i["item_id"]} for e in raw["impressions"][:1] for i in raw["items"]]
    write_table(wanted, tmp_path / "wanted.parquet")
    scores = write_scores(predicted, data, tmp_path / "scores")
    run(raw, tmp_path, data, relevance=[scores], candidates=tmp_path / "wanted.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    judged = {row["item_id"] for row in raw["judgments"] if row["query_id"] == raw["impressions"][0]["query_id"]}
    for item, packed in zip(row["candidate_item_id"], row["candidate_predicted"], strict=True):
        units = predicted.get((raw["impressions"][0]["query_id"], item), [0] * 4)
        assert packed == (0 if item in judged else int.from_bytes(units, "little"))


def test_soft_grades_that_do_not_fit_the_log_are_refused(tmp_path: Path) -> None:
    raw, data = random_log(5), DataConfig(**SMALL)
    scores = write_scores({(-1, -1): [128, 0, 0, 0]}, data, tmp_path / "scores")
    with pytest.raises(RawLogError, match=r"scores: grades no pair of this log that has no grade; are these pairs of this log"):
        run(raw, tmp_path / "a", data, relevance=[scores])
    other = data.model_copy(update={"levels": Levels(boundaries=[2.0])})
    with pytest.raises(ValueError, match=r"levels bounded by \[1.5, 2.17, 2.84\], data.levels.boundaries is \[2.0\]"):
        run(raw, tmp_path / "b", other, relevance=[scores])
    with pytest.raises(ValueError, match=r"not \(wholly\) taught, teach.json is missing"):
        run(raw, tmp_path / "c", data, relevance=[tmp_path])


def test_whole_grades_that_no_level_stands_for_are_told(tmp_path: Path) -> None:
    raw = random_log(1)
    for row in raw["judgments"]:
        row["relevance"] = float(round(row["relevance"] or 1))
    levels = Levels(boundaries=[1, 2])
    manifest = run(raw, tmp_path, DataConfig(**SMALL, levels=levels))
    assert manifest["level_grades"] == [1, 2, 3]
    note = far_from_levels(manifest, levels)
    assert note is not None and "of level 2 are 2.00 on average, 1.50 stands for it" in note
    assert "data.levels.level_grades: [1.0, 2.0, 3.0]" in note
    given = levels.model_copy(update={"level_grades": [1, 2, 3]})
    assert far_from_levels(manifest, given) is None
    assert read_manifest(tmp_path / "out", DataConfig(**SMALL, levels=given)) == manifest


def test_a_log_without_history_or_peers_wanted_has_empty_lists(tmp_path: Path) -> None:
    raw, data = random_log(2), DataConfig(**SMALL | {"history_length": 0, "peer_length": 0})
    run(raw, tmp_path, data)
    rows = labelled_rows(tmp_path)
    assert all(row["history_item_id"] == row["history_title"] == row["peer_item_id"] == [] for row in rows)


def test_narrow_exposure_cuts_training_candidates_and_nothing_else(tmp_path: Path) -> None:
    raw, data = random_log(3), DataConfig(**SMALL)
    run(raw, tmp_path / "wide", data)
    run(raw, tmp_path / "narrow", data.model_copy(update={"train_minimum_grade": 2.0}))
    wide, narrow = ({r["request_id"]: r for r in read_split(tmp_path / name / "out", "train")} for name in ("wide", "narrow"))
    kept = {key: [i for i, g in enumerate(row["candidate_relevance"]) if g is not None and g >= 2.0] for key, row in wide.items()}
    assert list(narrow) == [key for key in wide if kept[key]] and len(narrow) < len(wide)
    for key, row in narrow.items():
        assert row["candidate_item_id"] == [wide[key]["candidate_item_id"][i] for i in kept[key]]
        assert row["history_item_id"] == wide[key]["history_item_id"] and row["user_shown"] == wide[key]["user_shown"]
    tests = [read_split(tmp_path / name / "out", "test") for name in ("narrow", "wide")]
    counts = {name: [sum(row[name] for row in rows) for rows in tests] for name in tests[0][0] if name in TRAINED}
    assert all(0 < narrow < wide for narrow, wide in counts.values()) and len(counts) == len(TRAINED)
    for row, same in zip(*tests, strict=True):
        assert row == same | {name: row[name] for name in row if name.endswith("_trained")}


@pytest.mark.parametrize("seed", range(3))
def test_moving_an_event_past_a_request_changes_no_feature_of_it(tmp_path: Path, seed: int) -> None:
    raw, data = random_log(seed), DataConfig(**SMALL)
    moment = 25
    changed = copy.deepcopy(raw)
    for event in changed["impressions"]:  # everything from the moment on happens at another time, to others, with other clicks
        if event["timestamp"] >= moment:
            event["timestamp"] += 100
            event["click"] = 1 - event["click"]
    for name, log in (("before", raw), ("after", changed)):
        run(log, tmp_path / name, data.model_copy(update={"split": Split(validation_from=moment, test_from=moment)}))
    before, after = (read_split(tmp_path / name / "out", "train") for name in ("before", "after"))
    assert before
    assert before == after


def test_an_event_of_the_same_second_does_not_count(tmp_path: Path) -> None:
    raw = random_log(0, requests=4)
    for event in raw["impressions"]:
        event |= {"timestamp": 7 if event["request_id"] else 0, "user_id": raw["impressions"][0]["user_id"]}
    run(raw, tmp_path, DataConfig(**SMALL | {"split": Split(validation_from=100, test_from=100)}))
    first = sum(event["request_id"] == 0 for event in raw["impressions"])
    assert [row["user_events"] for row in labelled_rows(tmp_path)] == [0, first, first, first]


def test_own_events_are_never_among_the_peers(tmp_path: Path) -> None:
    raw, data = random_log(4), DataConfig(**SMALL | {"peer_length": 40, "peer_minimum": 40})
    items = iter(range(10**6))
    raw["items"], raw["judgments"] = [], raw["judgments"][:0]
    for event in raw["impressions"]:  # an item of its own tells whose event it was
        event["item_id"] = next(items)
        raw["items"].append({"item_id": event["item_id"], "title": "x", "category_id": 1, "brand_id": 0})
    raw["judgments"] = [{"query_id": q["query_id"], "item_id": 0, "relevance": 1.0} for q in raw["queries"]]
    run(raw, tmp_path, data)
    owner = {event["item_id"]: event["user_id"] for event in raw["impressions"]}
    rows = labelled_rows(tmp_path)
    assert any(any(row["peer_in_group"]) for row in rows)
    assert all(owner[item] != row["user_id"] for row in rows for item in row["peer_item_id"])
    assert all(owner[item] == row["user_id"] for row in rows for item in row["history_item_id"])


def test_own_events_are_never_in_the_counters_of_query_and_group(tmp_path: Path) -> None:
    raw = random_log(4)
    run(raw, tmp_path / "many", DataConfig(**SMALL))
    for event in raw["impressions"]:
        event["user_id"] = 1004
    run(raw, tmp_path / "one", DataConfig(**SMALL))
    names = [f"{who}_{what}" for who in ("query", "group") for what in COUNTED]
    many, one = (labelled_rows(tmp_path / users) for users in ("many", "one"))
    assert all(any(sum(row[name]) > 0 for row in many) for name in names)
    assert all(sum(row[name]) == 0 for row in one for name in names)
    assert any(row["group_id"] and row["user_events"] for row in one)


def test_queries_without_a_group_have_no_group_counters(tmp_path: Path) -> None:
    run(random_log(4), tmp_path, DataConfig(**SMALL | {"query_group": None}))
    assert all(sum(row[f"group_{what}"]) == 0 for row in labelled_rows(tmp_path) for what in COUNTED)


def test_the_estimated_examination_is_of_the_events_before_the_validation_part(tmp_path: Path) -> None:
    raw, data = random_log(18, requests=600), DataConfig(**SMALL | {"examination": None})
    early = [e for e in raw["impressions"] if e["timestamp"] < 20]
    estimate = run(raw, tmp_path / "a", data)["examination"]
    assert len(estimate) > 1 and estimate[0] == 1
    for event in raw["impressions"]:
        event["click"] = event["click"] if event["timestamp"] < 20 else int(event["position"] == 3)
    assert run(raw, tmp_path / "b", data)["examination"] == estimate
    for event in early:
        event["click"] = int(event["click"] and (event["position"] == 1 or event["request_id"] % 2))
    assert max(run(raw, tmp_path / "c", data)["examination"][1:]) < max(estimate[1:])


@pytest.mark.parametrize("examination", [None, [0.9, 0.5]])
def test_examination_is_in_the_manifest_and_the_same_for_candidates(tmp_path: Path, examination: list[float] | None) -> None:
    raw, data = random_log(19, requests=600), DataConfig(**SMALL | {"examination": examination})
    manifest = run(raw, tmp_path, data)
    assert examination is None or manifest["examination"] == examination
    write_table([{"request_id": 3, "item_id": raw["items"][1]["item_id"]}], tmp_path / "candidates.csv")
    scored = prepare(data, TEXT, tmp_path / "raw", tmp_path / "scored", candidates=tmp_path / "candidates.csv", progress=False)
    assert scored["examination"] == manifest["examination"]


@pytest.mark.parametrize("predicted", [False, True])
def test_counters_kept_event_by_event_are_those_of_the_samples(tmp_path: Path, predicted: bool) -> None:
    raw, data = random_log(20), DataConfig(**SMALL | {"examination": [1.0, 0.7, 0.3]})
    scores = [write_scores(random_predictions(raw, data), data, tmp_path / "scores")] if predicted else []
    run(raw, tmp_path, data, relevance=scores)
    rows = labelled_rows(tmp_path)
    statistics = PreferenceStatistics(data.levels.count, [1.0, 0.7, 0.3])
    for time, now in groupby(rows, key=lambda row: row["timestamp"]):
        of_moment = list(now)
        if time == 20:  # counters that were stored go on as if they had not been
            stored = statistics.state_dict()
            statistics = PreferenceStatistics(data.levels.count, [1.0, 0.7, 0.3])
            statistics.load_state_dict(stored)
        for row in of_moment:
            found = statistics.look_up(row["user_id"], row["query_id"], row["group_id"])
            found |= statistics.item(row["candidate_item_id"])
            assert {name: counts.tolist() for name, counts in found.items()} == {name: row[name] for name in found}
            assert len(found) == 12
        for row in of_moment:
            add_events(statistics, row, data)
    assert time > 20


def add_events(statistics: PreferenceStatistics, row: dict[str, Any], data: DataConfig) -> None:
    grades = np.array(row["candidate_relevance"], np.float32)
    events = (row["candidate_item_id"], grade_levels(grades, data.levels.boundaries), row["candidate_position"])
    for item, level, position, click, predicted in zip(*events, row["candidate_click"], row["candidate_predicted"], strict=True):
        statistics.add(row["user_id"], row["query_id"], row["group_id"], item, int(level), position, click, predicted)


def test_a_request_is_never_in_its_own_history(tmp_path: Path) -> None:
    run(random_log(5), tmp_path, DataConfig(**SMALL))
    assert all(age >= 1 for row in labelled_rows(tmp_path) for age in row["history_age"] + row["peer_age"])


def test_splits_follow_the_fractions_and_requests_of_one_time_stay_together(tmp_path: Path) -> None:
    manifest = run(random_log(6), tmp_path, DataConfig(**SMALL | {"split": Split(validation_fraction=0.2, test_fraction=0.25)}))
    times = [{row["timestamp"] for row in read_split(tmp_path / "out", split)} for split in LABELLED]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])
    assert 30 <= manifest["splits"]["test"]["requests"] <= 36
    assert sum(manifest["splits"][split]["requests"] for split in LABELLED) == 120


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.split: validation from -?\d+ and test from 0 leave nothing to train on"):
        run(random_log(), tmp_path, DataConfig(**SMALL | {"split": Split(test_from=0)}))


@pytest.mark.parametrize("text_ids", [False, True])
def test_csv_gives_the_same_samples_as_parquet(tmp_path: Path, text_ids: bool) -> None:
    raw = random_log(11, text_ids=text_ids)
    names = {name: RawTable(path=f"{name}.csv") for name in raw}
    run(raw, tmp_path / "a", DataConfig(**SMALL))
    run(raw, tmp_path / "b", DataConfig(**SMALL, raw=RawLog(**names)), suffix="csv")
    assert labelled_rows(tmp_path / "a") == labelled_rows(tmp_path / "b")


def test_columns_are_mapped_and_globs_read_as_one_table(tmp_path: Path) -> None:
    raw = random_log(12)
    run(raw, tmp_path / "a", DataConfig(**SMALL))
    folder = write_log(raw, tmp_path / "b")
    (folder / "impressions.parquet").unlink()
    renamed = [{"ts" if key == "timestamp" else key: value for key, value in row.items()} for row in raw["impressions"]]
    write_table(renamed[:100], folder / "day-1.parquet")
    write_table(renamed[100:], folder / "day-2.parquet")
    log = RawLog(impressions=RawTable(path="day-*.parquet", columns={"timestamp": "ts"}))
    prepare(DataConfig(**SMALL, raw=log), TEXT, folder, tmp_path / "b" / "out", progress=False)
    assert labelled_rows(tmp_path / "a") == labelled_rows(tmp_path / "b")


def test_a_log_may_lack_positions_judgments_and_users(tmp_path: Path) -> None:
    raw = random_log(13)
    del raw["judgments"]
    for event in raw["impressions"]:
        del event["position"]
    manifest = run(raw, tmp_path, DataConfig(**SMALL))
    assert manifest["rows"]["judgments"] == 0
    assert manifest["splits"]["judgments"]["requests"] == 0
    assert all(
        set(row["candidate_relevance"]) == {None} and set(row["candidate_position"]) == {0} for row in labelled_rows(tmp_path)
    )
    assert all(row["user_examined"] == row["user_shown"] for row in labelled_rows(tmp_path))  # not logged: looked at


def test_user_attributes_become_request_columns_and_unknown_users_get_zero(tmp_path: Path) -> None:
    raw = random_log(14)
    users = sorted({event["user_id"] for event in raw["impressions"]})
    raw["users"] = [{"user_id": user, "user_age": 30 + n, "town": f"t{n}"} for n, user in enumerate(users[1:])]
    run(raw, tmp_path, DataConfig(**SMALL, user_attributes=["user_age", "town"]))
    known = {row["user_id"]: (row["user_age"], row["user_town"]) for row in labelled_rows(tmp_path)}
    assert known == {users[0]: (0, 0)} | {user: (30 + n, as_id(f"t{n}")) for n, user in enumerate(users[1:])}


def test_the_group_may_be_a_column_of_queries(tmp_path: Path) -> None:
    raw = random_log(15)
    for n, query in enumerate(raw["queries"]):
        query["department"] = f"d{n % 2}" if n else None
    run(raw, tmp_path, DataConfig(**SMALL | {"query_group": "department"}))
    expected = {q["query_id"]: as_id(q["department"]) if q["department"] else 0 for q in raw["queries"]}
    assert {row["query_id"]: row["group_id"] for row in labelled_rows(tmp_path)}.items() <= expected.items()


def test_shards_have_the_schema_and_the_sizes_of_the_configuration(tmp_path: Path) -> None:
    data = DataConfig(**SMALL)
    manifest = run(random_log(16), tmp_path, data)
    for split in ("train", "validation", "test", "judgments"):
        rows = 0
        for name in manifest["splits"][split]["files"]:
            file = pq.ParquetFile(tmp_path / "out" / split / name)
            check_schema(file.schema_arrow, sample_schema(data), name)
            assert file.metadata.num_rows <= 50
            assert all(file.metadata.row_group(g).num_rows <= 20 for g in range(file.num_row_groups))
            rows += file.metadata.num_rows
        assert rows == manifest["splits"][split]["requests"]


def test_the_manifest_says_what_a_simulated_log_says(tmp_path: Path) -> None:
    folder = write_log(random_log(17), tmp_path / "raw")
    path = folder / "impressions.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"simulated": "true"}), path)
    assert prepare(DataConfig(**SMALL), TEXT, folder, tmp_path / "out", progress=False)["simulated"] is True


def test_the_tokenizer_of_a_given_encoder_is_taken_and_document_frequencies_are_the_logs(tmp_path: Path) -> None:
    raw = write_log(random_log(0), tmp_path / "raw")
    given = TextConfig(path=str(write_tokenizer(tmp_path / "encoder")))
    prepare(DataConfig(**SMALL), given, raw, tmp_path / "out", progress=False)
    ours, theirs = (
        json.loads((tmp_path / name / "tokenizer.json").read_text(encoding="utf-8")) for name in ("out/tokenizer", "encoder")
    )
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    counted = json.loads((tmp_path / "out" / "tokenizer" / DOCUMENT_FREQUENCY).read_text(encoding="utf-8"))
    assert len(counted["frequency"]) == len(theirs["model"]["vocab"]) and counted["documents"] > 0
    prepare(DataConfig(**SMALL), given, raw, tmp_path / "out", progress=False)  # a rerun knows it for finished
    with pytest.raises(ValueError, match=r"no tokenizer\.json here; a tokenizer in Hugging Face layout is needed"):
        prepare(DataConfig(**SMALL), TextConfig(path=str(tmp_path)), raw, tmp_path / "other", progress=False)
