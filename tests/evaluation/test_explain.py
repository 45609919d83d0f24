"""One request taken apart, on a small trained run with all parts on."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_run import small_config, write_small_data
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.explain import explain, format_explanation
from prectr_torchrec.modules import TargetAttention
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}]}


def trained(run: Path, data: Path, config: RunConfig) -> Path:
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("explain") / "data", small_config(), requests=40)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    return trained(data.parent / "run", data, small_config(train=STAGES))


@pytest.fixture(scope="module")
def plain(data: Path) -> Path:
    """A single click logit and no part that is personal."""
    model = {"mixture": False, "parts": {"interest": None, "personal": None, "taste": None}}
    return trained(data.parent / "plain", data, small_config(model=model, train=STAGES))


def samples(data: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((data / "test").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def sample(data: Path) -> dict[str, Any]:
    """The last request with several candidates, an own history and peers."""
    return [s for s in samples(data) if s["num_candidates"] > 2 and len(s["history_age"]) > 2 and len(s["peer_age"]) > 2][-1]


@pytest.fixture(scope="module")
def found(run: Path, data: Path, sample: dict[str, Any]) -> dict[str, Any]:
    return explain(run, data, sample["request_id"])


def test_attention_weights_are_those_that_the_module_applies() -> None:
    torch.manual_seed(0)
    attention = TargetAttention(5, 6, 7, dim=8, num_heads=2)
    torch.nn.init.normal_(attention.prior_key)
    torch.nn.init.normal_(attention.prior_value)
    target, key, value, lengths = torch.randn(3, 2, 5), torch.randn(3, 4, 6), torch.randn(3, 4, 7), torch.tensor([0, 2, 4])
    weights = attention.weights(target, key, lengths)
    projected = torch.cat([attention.prior_value.expand(3, 1, -1), attention.value(value)], dim=1)
    by_head = projected.unflatten(2, (2, 4)).transpose(1, 2)
    torch.testing.assert_close((weights @ by_head).transpose(1, 2).flatten(2), attention(target, key, value, lengths))
    assert weights[0, ..., 0].eq(1).all() and weights[1, ..., 3:].eq(0).all()


def test_candidates_come_best_first_with_what_the_samples_say(found: dict[str, Any], sample: dict[str, Any]) -> None:
    rows = found["candidates"]
    assert [r["click_probability"] for r in rows] == sorted((r["click_probability"] for r in rows), reverse=True)
    titles, grades = (
        dict(zip(sample["candidate_item_id"], sample[f"candidate_{n}"], strict=True)) for n in ("title", "relevance")
    )
    assert {r["item_id"]: r["title"] for r in rows} == titles and {r["item_id"]: r["grade"] for r in rows} == grades
    assert all((r["level"] is None) == (r["grade"] is None) for r in rows)


def test_the_click_probability_is_made_of_the_parts(found: dict[str, Any]) -> None:
    for row in found["candidates"]:
        pi = np.array(row["relevance_probabilities"]) if row["level"] is None else np.eye(4)[row["level"] - 1]
        assert row["click_probability"] == pytest.approx(pi @ row["click_by_level"], abs=1e-4)
        assert sum(row[f"weight_{side}"] for side in ("own", "peers", "prior")) == pytest.approx(1, abs=1e-5)
        assert 0 < row["taste_variance"] <= 1
        for name in ("effect_own", "effect_peers"):
            by_level = row[f"{name}_by_level"]
            assert len(by_level) == 4 and row[name] == pytest.approx(pi @ by_level, abs=1e-4) and any(by_level)


def test_it_explains_what_evaluation_predicts(run: Path, data: Path, found: dict[str, Any], tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.parquet"
    evaluate(["--run", str(run), "--data", str(data), "--predictions", str(predictions), "--metrics", str(tmp_path / "m.json")])
    rows = [r for r in pq.read_table(predictions).to_pylist() if r["request_id"] == found["request_id"]]
    predicted = {r["item_id"]: r["click_probability"] for r in rows}
    assert {r["item_id"]: r["click_probability"] for r in found["candidates"]} == pytest.approx(predicted, abs=1e-5)
    for row in found["candidates"]:
        other = next(r for r in rows if r["item_id"] == row["item_id"])
        for name in ("effect_own", "effect_peers", "taste"):
            assert other[name] == pytest.approx(row[name], abs=1e-5)
            if name != "taste":
                by_level = row[f"{name}_by_level"]
                assert other[f"{name}_slope"] == pytest.approx(by_level[3] - by_level[0], abs=1e-5)
        for name in ("weight_own", "weight_peers", "weight_prior"):
            assert other[name] == pytest.approx(row[name], abs=1e-5)


def test_attention_falls_on_the_events_of_the_sample(found: dict[str, Any], sample: dict[str, Any]) -> None:
    for name, family, parts in (("own_history", "history", {"interest", "intent", "category"}), ("peers", "peer", {"peers"})):
        attended = found[name]
        assert attended["nothing_fits"].keys() == parts and attended["events"] == len(sample[f"{family}_age"]) <= 10
        for part in parts:
            assert sum(e[part] for e in attended["strongest"]) + attended["nothing_fits"][part] == pytest.approx(1, abs=1e-5)
        expected = zip(*(sample[f"{family}_{n}"] for n in ("item_id", "query_id", "age", "position")), strict=True)
        events = [(e["item_id"], e["query_id"], e["age"], e["position"] or 0) for e in attended["strongest"]]
        assert sorted(events) == sorted(expected)
    totals = [e["interest"] + e["intent"] + e["category"] for e in found["own_history"]["strongest"]]
    assert totals == sorted(totals, reverse=True)
    titles = dict(zip(sample["history_item_id"], sample["history_title"], strict=True))
    assert all(e["title"] == titles[e["item_id"]] for e in found["own_history"]["strongest"])


def test_the_numbers_of_the_log_are_told(found: dict[str, Any], sample: dict[str, Any]) -> None:
    assert found["numbers"] == {name: sample[name] for name in ("user_age", "user_joined", "query_length", "hour")}
    told = {row["item_id"]: row["numbers"] for row in found["candidates"]}
    expected = zip(*(sample[f"candidate_{name}"] for name in ("item_id", "price", "listed", "bm25")), strict=True)
    assert told == {item: {"price": price, "listed": listed, "bm25": bm25} for item, price, listed, bm25 in expected}
    text = format_explanation(found)
    assert "user age" in text.splitlines()[1] and "price" in text and "bm25" in text


def test_a_request_without_a_past_has_empty_lists(run: Path, data: Path) -> None:
    newcomer = next(s for s in samples(data) if not s["history_age"] and not s["peer_age"])
    found = explain(run, data, newcomer["request_id"], checkpoint="last")
    assert found["own_history"]["strongest"] == found["peers"]["strongest"] == []
    assert found["peers"]["nothing_fits"]["peers"] == 1.0
    assert "0 strongest of 0 events" in format_explanation(found)


def test_parts_that_the_run_lacks_are_left_out(plain: Path, data: Path, sample: dict[str, Any]) -> None:
    found = explain(plain, data, sample["request_id"], split="test")
    assert found["candidates"][0].keys() == {
        "item_id",
        "title",
        "grade",
        "level",
        "numbers",
        "click_probability",
        "relevance_probabilities",
        "effect_own",
        "effect_peers",
    }
    assert "own_history" not in found and "peers" not in found
    text = format_explanation(found)
    assert "click probability: what ranks" in text and "by level" not in text and "history" not in text


def test_a_preference_of_the_own_past_alone_is_told_without_peers(data: Path, sample: dict[str, Any]) -> None:
    config = small_config(
        model={"parts": {"interest": None, "taste": None, "personal": {"peers": False, "incentive": "none"}}}, train=STAGES
    )
    found = explain(trained(data.parent / "own", data, config), data, sample["request_id"])
    first = found["candidates"][0]
    assert first["weight_own"] + first["weight_prior"] == pytest.approx(1, abs=1e-5) and first["weight_peers"] == 0
    assert "taste" not in first and "peers" not in found
    assert found["own_history"]["nothing_fits"].keys() == {"intent", "category"}


def test_the_command_prints_tables_and_writes_the_same_as_json(
    run: Path, data: Path, found: dict[str, Any], sample: dict[str, Any], tmp_path: Path
) -> None:
    command = ["explain", "--run", str(run), "--data", str(data), "--request", str(sample["request_id"])]
    done = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    assert done.output.rstrip() == format_explanation(found)
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == found
    header = next(line for line in done.output.splitlines() if line.startswith("item"))
    effects = ("effect own", "effect own by level", "effect peers", "effect peers by level")
    parts = ("relevance probabilities", "click by level", *effects, "taste", "taste variance")
    weights = ("weight own", "weight peers", "weight prior")
    assert sorted(re.split(r" {2,}", header)) == sorted(
        ("item", "title", "grade", "level", "click probability", "price", "listed", "bm25", *parts, *weights)
    )
    said = {name: part["meaning"] for name, part in found["parts"].items()}
    assert f"taste: {said['taste']}" in done.output and "a known or predicted level replaces them" in done.output


def test_an_unknown_request_is_answered_with_one_that_is_there(run: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"data/test: no request 5 in this split; one that is there: \d{13}$") as error:
        explain(run, data, 5)
    example = int(str(error.value).split()[-1])
    assert example in {s["request_id"] for s in samples(data)}


def test_an_unknown_split_or_run_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no split 'tests' here \(found: judgments, test, train, validation\)"):
        explain(run, data, 5, split="tests")
    with pytest.raises(FileNotFoundError, match=r"no run directory \(config.yaml is missing\)"):
        explain(tmp_path, data, 5)
