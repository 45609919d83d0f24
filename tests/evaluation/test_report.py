"""The report says what was measured, in one file that needs nothing else."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_evaluation as build
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.evaluation.evaluate import evaluate
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.runs.workspace import write_json


def write_run(folder: Path, data: Path, oracle: Path | None, personal: bool = False) -> Path:
    """A run directory with made-up curves and the figures of `build.scored`."""
    folder.mkdir()
    rng = np.random.default_rng(len(folder.name))
    found = evaluate(
        build.scored(personal=personal),
        settings=DataConfig(),
        parts=build.columns(personal=personal),
        split=data / "test",
        train=data / "train",
        predictions=folder / "predictions-test.parquet",
        oracle=oracle,
    )
    write_json({"run": folder.name, **found}, folder / "metrics-test.json")
    lines = []
    for step in range(20, 1001, 20):
        loss = 0.45 + 0.25 * np.exp(-step / 200) + rng.normal(0, 0.01)
        lines.append({"step": step, "epoch": step // 500, "stage": "train", "loss": loss, "bce": loss, "anchor": 2 * loss})
        if step % 500 == 0:
            lines.append(
                {"step": step, "validation": {"ne": loss + 0.4, "auc": 1 - loss / 2, "gauc_request": 0.6, "calibration": 1.0}}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10', encoding="utf-8")
    return folder


NAMES = ("prectr_v1", "dnn", "din")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    build.write_prepared(folder / "data")
    build.write_oracle(folder / "oracle.parquet")
    for name in NAMES:
        write_run(folder / name, folder / "data", folder / "oracle.parquet")
    return folder


@pytest.fixture
def runs(measured, tmp_path):
    """Run directories of the test's own."""
    return {name: shutil.copytree(measured / name, tmp_path / name) for name in NAMES}


@pytest.fixture(scope="module")
def page(measured):
    write_report(measured / "report.html", {name: measured / name for name in NAMES})
    return (measured / "report.html").read_text(encoding="utf-8")


def test_the_table_holds_every_run_the_true_grade_and_the_oracle(page, runs):
    for name in (*runs, "true grade alone", "oracle"):
        assert f"<th scope=row>{name}</th>" in page
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))
    assert f"{found['clicks']['auc']:.4f}" in page
    assert f"{found['oracle']['expected_auc']['all']['oracle']:.4f}" in page


def test_other_runs_are_compared_with_the_first_on_the_same_rows(measured, runs, tmp_path):
    section = re.search("<h2>Against the first ranker.*?</section>", (measured / "report.html").read_text(encoding="utf-8"))
    assert section is not None
    assert re.findall("<th scope=row>(.*?)</th>", section[0]) == ["dnn, clicks", "din, clicks"]
    assert re.search(r"<td>[+-]0\.\d{4} \([+-]0\.\d{4} to [+-]0\.\d{4}\)</td>", section[0])
    (runs["din"] / "predictions-test.parquet").unlink()
    fewer = runs["dnn"] / "predictions-test.parquet"
    pq.write_table(pq.read_table(fewer).slice(1), fewer)
    write_report(tmp_path / "report.html", runs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not compared: dnn: " in page and "score the same split with both runs" in page
    assert "Not compared: din: predictions-test.parquet is not there." in page


def test_every_section_is_there(page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Comparison",
        "Against the first ranker",
        "Against the logged order",
        "Training",
        "Users by activity",
        "Personal effect by relevance",
        "Parts of the rankers",
        "Calibration",
        "Calibration by position",
        "Relevance",
    ]


def test_runs_with_personal_parts_have_their_figures_beside_those_without(measured, tmp_path):
    run = write_run(tmp_path / "prectr_v2", measured / "data", measured / "oracle.parquet", personal=True)
    write_report(tmp_path / "report.html", {"prectr_v2": run, "prectr_v1": measured / "prectr_v1"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawings = dict(
        zip(re.findall("<h2>(.*?)</h2><figure>", page), re.findall(r"<figure>(.*?)</figure>", page, re.S), strict=True)
    )
    personal = ["Personal effect by relevance", "Preference by activity"]
    assert list(drawings) == ["Training", "Users by activity", *personal, "Calibration"]
    for name, texts in {
        "Users by activity": {"prectr_v1", "prectr_v2", "AUC on logged clicks", "Expected AUC, all candidates", "20-99"},
        "Personal effect by relevance": {
            "prectr_v2",
            "strict users, own past",
            "indifferent users, others' past",
            "relevance level",
        },
        "Preference by activity": {"prectr_v2", "own history", "peers", "prior", "100+"},
    }.items():
        assert texts <= set(re.findall(r"<text[^>]*>([^<]*)</text>", drawings[name])), name
    assert "prectr_v1" not in drawings["Preference by activity"] and "prectr_v1" in drawings["Personal effect by relevance"]
    assert "prectr_v2, 3 strict users, own past, from the lowest level up: +" in drawings["Personal effect by relevance"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_metrics_of_an_earlier_release_are_refused(runs, tmp_path):
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))
    write_json({name: value for name, value in found.items() if name != "parts"}, runs["dnn"] / "metrics-test.json")
    with pytest.raises(ValueError, match="run 'dnn' was measured by an earlier release; run `prectr evaluate` on it again"):
        write_report(tmp_path / "report.html", {"dnn": runs["dnn"]})


def test_a_run_measured_with_hidden_grades_has_a_row_for_it(runs, tmp_path):
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))
    found["clicks"]["auc"] = 0.987654
    write_json({**found, "grades": "hidden"}, runs["dnn"] / "metrics-test-grades-hidden.json")
    write_report(tmp_path / "report.html", runs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    comparison = re.findall("<th scope=row>(.*?)</th>", page[: page.index("<h2>Against")])
    assert comparison[:4] == ["prectr_v1", "dnn", "dnn, grades hidden", "din"]
    assert re.search(r"<td>0\.9877 ± 0\.\d{4}</td>", page)  # best, but not of the runs that see the grades: not bold


def test_each_run_has_its_verdict_and_differences_from_the_logged_order(page, runs):
    section = page[page.index("<h2>Against the logged order</h2>") : page.index("<h2>Training</h2>")]
    for name in NAMES:
        found = json.loads((runs[name] / "metrics-test.json").read_text(encoding="utf-8"))["logged_order"]
        assert f"<li>{name}: {found['verdict']['text']}</li>" in section
        for kind in ("logged", "position_corrected"):
            assert f"{found[kind]['ndcg@10']['difference']:+.4f} (" in section
    assert f"<td>{found['position_corrected']['pair_accuracy']['logged_order']:.4f}</td>" in section
    assert "10 at most" in section


def test_the_logged_order_is_a_row_of_the_comparison(page, runs):
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))["logged_order"]["logged"]
    row = re.search("<th scope=row>logged order</th>(.*?)</tr>", page).group(1)
    assert f"<td>{found['auc']['logged_order']:.4f}</td>" in row and f"<td>{found['ndcg@10']['logged_order']:.4f}</td>" in row


def test_calibration_is_given_at_each_position_and_served_over_true(page, runs):
    section = page[page.index("<h2>Calibration by position</h2>") :]
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))
    for line in found["calibration_by_position"]:
        assert f"<th scope=row>{line['position']}</th><td>{line['rows']}</td><td>{line['clicks']}</td>" in section
        assert f"<td>{line['calibration']:.4f}</td>" in section
    assert "Served / true" in page and f"{found['oracle']['calibration']:.4f}" in page


def test_the_page_needs_no_network_and_no_script(page):
    assert not re.search(r"<script|<link|<img|src=|@import|url\((?!#)", page)
    assert not re.search(r'href="(?!#)', page)


def test_figures_have_texts_for_those_who_cannot_see_them(page):
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg") == 4
    assert "AUC on logged clicks, prectr_v1: " in labels[1]


def test_ids_are_unique_over_all_figures(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_opened_element_is_closed(page):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.stack = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "use", "path"):
                self.stack.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            if tag not in ("use", "path"):
                assert self.stack.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.stack == []


def test_simulated_data_are_called_so(page, runs, tmp_path):
    assert "Simulated data." in page
    for run in runs.values():
        found = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
        write_json({**found, "simulated": False}, run / "metrics-test.json")
    write_report(tmp_path / "real.html", runs)
    assert "Simulated data." not in (tmp_path / "real.html").read_text(encoding="utf-8")


def test_names_are_escaped(runs, tmp_path):
    write_report(tmp_path / "report.html", {"a<b>&c": runs["dnn"]}, title="<i>")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;&amp;c" in page
    assert "a<b>" not in page
    assert "<i>" not in page


def test_expected_auc_on_all_candidates_comes_from_the_split_that_has_them(runs, tmp_path):
    run = runs["dnn"]
    found = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    other = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    found["oracle"]["expected_auc"]["all"] = dict.fromkeys(found["oracle"]["expected_auc"]["all"])
    other["oracle"]["expected_auc"]["all"]["model"] = 0.123456
    write_json(found, run / "metrics-test.json")
    write_json({**other, "split": "candidates"}, run / "metrics-candidates.json")
    write_report(tmp_path / "report.html", {"dnn": run})
    assert "0.1235" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_run_without_an_oracle_or_curves_still_makes_a_page(tmp_path):
    build.write_prepared(tmp_path / "data")
    run = write_run(tmp_path / "plain", tmp_path / "data", None)
    (run / "metrics.jsonl").unlink()
    write_report(tmp_path / "report.html", {"plain": run})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Expected AUC" not in page
    assert "<h2>Training</h2>" not in page


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"run 'dnn' has no metrics-test.json or metrics-candidates.json; run `prectr evaluate`"):
        write_report(tmp_path / "report.html", {"dnn": tmp_path})


def test_a_run_whose_relevance_tower_was_not_trained_still_makes_a_page(runs, tmp_path):
    found = json.loads((runs["dnn"] / "metrics-test.json").read_text(encoding="utf-8"))
    write_json({**found, "relevance": {}}, runs["dnn"] / "metrics-test.json")
    write_report(tmp_path / "report.html", {"dnn": runs["dnn"]})
    assert "<h2>Relevance</h2>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_runs_of_one_name_are_told_apart_by_their_paths(measured, tmp_path):
    paths = [str(shutil.copytree(measured / "dnn", tmp_path / parent / "dnn")) for parent in "ab"]
    done = CliRunner().invoke(app, ["report", *paths, "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<th scope=row>{path}</th>" in page for path in paths)


@pytest.mark.parametrize(("key", "value"), [("clicks", None), ("reliability", "text"), ("segments", [1])])
def test_damaged_figures_are_named(key, value, runs, tmp_path: Path) -> None:
    path = runs["dnn"] / "metrics-test.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**figures, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"dnn/metrics-test\.json.*: damaged, or of another release"):
        write_report(tmp_path / "report.html", {"dnn": runs["dnn"]})
