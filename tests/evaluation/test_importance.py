"""Columns exchanged at random, on a small trained run that reads columns of every kind."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import small_config, write_small_data

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.launch import launch
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.evaluation.importance import Rows, format_importance, importance, main, score_permuted
from prectr_torchrec.evaluation.permuted_columns import Column, columns_of, permuted
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.modules import Events, Inputs, Texts
from prectr_torchrec.training.sharded import build_sharded
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}]}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return small_config(train=STAGES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    return write_small_data(tmp_path_factory.mktemp("importance") / "data", config, requests=40)


@pytest.fixture(scope="module")
def run(data: Path, config: RunConfig) -> Path:
    run = data.parent / "run"
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()
    return run


@pytest.fixture(scope="module")
def inputs(run: Path, data: Path, config: RunConfig) -> Inputs:
    """Of a batch of the test split."""
    with process_group("cpu") as process:
        batch = list(SearchReader(config, data, "test", run / TOKENIZER).epoch(0))[-1]
        task = build_sharded(config, run, process)[0].eval().module
        with torch.no_grad():
            return batch.inputs(*task.embeddings(batch.request_features, batch.candidate_features))


def test_every_input_but_the_position_belongs_to_one_column(inputs: Inputs, config: RunConfig) -> None:
    columns = columns_of(inputs, config.features)
    grouped = {
        "user counters",
        "query counters",
        "group counters",
        "item counters",
        "grade",
        "history",
        "peers",
        "query",
        "title",
    }
    assert grouped < columns.keys()
    assert {"user_id", "candidate_item_id", "candidate_brand_id", "candidate_price", "candidate_tags"} < columns.keys()
    for kind in ("request", "candidate", "sequences", "texts"):
        names = [name for column in columns.values() for name in getattr(column, kind)]
        assert sorted(names) == sorted(name for name in getattr(inputs, kind) if name != "position")


def test_values_go_round_in_one_circle_and_all_else_stays(inputs: Inputs, config: RunConfig) -> None:
    padding = replace(inputs, request_weight=(torch.arange(len(inputs.request_weight)) < 6).float())
    for name, column in columns_of(inputs, config.features).items():
        found = permuted(padding, column, torch.Generator().manual_seed(3))
        for kind, weight in (("request", padding.request_weight), ("candidate", padding.candidate_weight)):
            kept = weight > 0
            for key, values in getattr(inputs, kind).items():
                changed = getattr(found, kind)[key]
                if key not in getattr(column, kind):
                    assert changed is values, (name, key)
                    continue
                assert torch.equal(changed[~kept].nan_to_num(), values[~kept].nan_to_num())
                assert sorted(map(str, changed[kept].tolist())) == sorted(map(str, values[kept].tolist()))
    marked = Column(request=["at"])
    numbered = Inputs(
        {"at": torch.arange(5.0)[:, None]}, {}, {}, {}, torch.tensor([1.0, 1, 1, 1, 0]), torch.zeros(1), torch.ones(1)
    )
    circle = permuted(numbered, marked, torch.Generator().manual_seed(0)).request["at"].squeeze(1).long().tolist()
    assert circle[4] == 4
    at, passed = circle[0], {0}
    while at not in passed:
        passed.add(at)
        at = circle[at]
    assert passed == {0, 1, 2, 3}


def test_events_and_their_texts_go_together() -> None:
    number = torch.arange(4)
    history = Events({"age": number[:, None].float(), "predicted": torch.zeros(4, 0, 3)}, lengths=number)
    texts = {name: Texts(torch.zeros(4, 1), rows) for name, rows in (("history_title", number[:, None]), ("title", number))}
    inputs = Inputs({}, {}, {"history": history, "peer": history}, texts, torch.ones(4), number, torch.ones(4))
    columns = columns_of(inputs, {})
    assert columns == {
        "history": Column(sequences=["history"], texts=["history_title"]),
        "peers": Column(sequences=["peer"]),
        "title": Column(texts=["title"]),
    }
    found = permuted(inputs, columns["history"], torch.Generator().manual_seed(1))
    moved = found.sequences["history"].lengths
    assert (moved != number).all()
    assert found.sequences["history"].features["age"].squeeze(1).equal(moved.float())
    assert found.texts["history_title"].rows.squeeze(1).equal(moved)
    assert found.sequences["peer"] is history
    assert found.texts["title"] is texts["title"]


def test_further_texts_go_from_candidate_to_candidate() -> None:
    rows = torch.arange(6)
    texts = {name: Texts(torch.zeros(6, 1), rows) for name in ("title", "details")} | {
        "query": Texts(torch.zeros(2, 1), rows[:2])
    }
    inputs = Inputs({}, {}, {}, texts, torch.ones(2), torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6))
    column = columns_of(inputs, {})["details"]
    found = permuted(inputs, column, torch.Generator().manual_seed(1)).texts
    assert column == Column(texts=["details"]) and found["title"] is texts["title"]
    assert (found["details"].rows != rows).all() and found["details"].rows.sort().values.equal(rows)


def test_the_loss_is_that_of_the_auc() -> None:
    rng = np.random.default_rng(0)
    request, click = np.repeat(np.arange(50), 4), (rng.random(200) < 0.3).astype(np.float32)
    good, noise = click + rng.normal(size=200), rng.normal(size=200)
    found = importance(Rows(request, click, {"": good, "noise": noise, "same": good}))
    higher, lower = good[click == 1][:, None], good[click == 0]
    by_hand = float(np.mean((higher > lower) + 0.5 * (higher == lower)))
    assert found["auc"] == pytest.approx(by_hand)
    assert list(found["columns"]) == ["noise", "same"]
    assert found["columns"]["noise"]["loss"] == pytest.approx(by_hand - found["columns"]["noise"]["auc"])
    low, high = found["columns"]["noise"]["interval"]
    assert 0 < low < found["columns"]["noise"]["loss"] < high
    assert found["columns"]["same"] == {"auc": found["auc"], "loss": 0.0, "interval": [0.0, 0.0]}


def test_clicks_of_one_class_have_no_importance() -> None:
    found = importance(Rows(np.arange(4), np.zeros(4), {"": np.arange(4.0), "x": np.arange(4.0)}))
    assert found["auc"] is None
    assert found["columns"] == {"x": {"auc": None, "loss": None, "interval": None}}
    assert "x" in format_importance(found)


def test_ranks_measure_every_row_once(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--run", str(run), "--data", str(data), "--out", str(data.parent / "one.json")])
    assert "candidate_price" in capsys.readouterr().out
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    launch("importance", ["--run", str(run), "--data", str(data)], 2)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)] == handlers
    one, two = (json.loads(p.read_text(encoding="utf-8")) for p in (data.parent / "one.json", run / "importance-test.json"))
    assert (one["rows"], one["requests"], one["columns"].keys()) == (two["rows"], two["requests"], two["columns"].keys())
    assert one["auc"] == pytest.approx(two["auc"], abs=1e-6)


def test_the_report_draws_it(run: Path, data: Path) -> None:
    main(["--run", str(run), "--data", str(data)])
    evaluate(["--run", str(run), "--data", str(data)])
    write_report(data.parent / "report.html", {"small": run})
    assert "Importance of columns" in (data.parent / "report.html").read_text(encoding="utf-8")


def test_batches_of_one_request_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    other.mkdir()
    for path in run.iterdir():
        (other / path.name).symlink_to(path)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").unlink()
    (other / "config.yaml").write_text(text.replace("requests: 8", "requests: 1", 1), encoding="utf-8")
    with process_group("cpu") as process, pytest.raises(ValueError, match=r"batch.requests is 1, and columns are exchanged"):
        score_permuted(other, data, "test", "best", process)
