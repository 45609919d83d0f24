"""Soft grades of a file of pairs: whole, the same on any number of ranks and after any kill, and measured rightly."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import Forked
from sklearn.metrics import roc_auc_score
from small_job import prectr
from teachers import causal_teacher, classifier, small_pairs

from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.teacher_scores import expected_grades, probabilities, read_teacher_scores
from prectr_torchrec.distributed.launch import launch
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text import teach
from prectr_torchrec.text.teacher import TeacherOptions, load_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pairs.parquet` in about 25 row groups, a `classifier`, and `whole`, its soft grades with hidden states."""
    folder = tmp_path_factory.mktemp("teach")
    small_pairs(folder, rows_per_row_group=50)
    classifier(folder / "classifier")
    teach.main(arguments(folder, folder / "whole"))
    return folder


def arguments(folder: Path, out: Path) -> list[str]:
    return [
        "--teacher",
        str(folder / "classifier"),
        "--pairs",
        str(folder / "pairs.parquet"),
        "--out",
        str(out),
        "--hidden",
        "--max-tokens",
        "400",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_pair_is_graded_once_in_order(folder: Path) -> None:
    pairs, scores = PairsFile.open(folder / "pairs.parquet").read(), read_teacher_scores([folder / "whole"])
    for column in ("query_id", "item_id"):
        assert scores[column].equals(pairs[column])
    np.testing.assert_allclose(probabilities(scores).sum(1), 1, atol=1e-5)
    assert scores.schema.field("probabilities").type == pa.list_(pa.float32(), 4)
    assert scores.schema.field("hidden").type == pa.list_(pa.float16(), 16)


def test_the_grades_are_the_teachers(folder: Path) -> None:
    pairs, scores = PairsFile.open(folder / "pairs.parquet").read(), read_teacher_scores([folder / "whole"])
    expected = load_teacher(folder / "classifier", 4).grade(pairs["query"].to_pylist(), pairs["title"].to_pylist())
    np.testing.assert_allclose(probabilities(scores), expected.probabilities, atol=1e-6)


def test_agreement_is_told_by_split(folder: Path) -> None:
    told = json.loads((folder / "whole" / "teach.json").read_text(encoding="utf-8"))
    source = PairsFile.open(folder / "pairs.parquet")
    np.testing.assert_allclose(told["level_grades"], source.level_grades())
    scores = read_teacher_scores([folder / "whole"])
    expected = probabilities(scores).astype(np.float64) @ told["level_grades"]
    np.testing.assert_allclose(expected_grades(scores), expected, rtol=1e-6)
    pairs = source.read()
    grade = pairs["relevance"].to_numpy()
    for split in ("train", "validation", "test"):
        rows = (pairs["split"].to_numpy() == split) & ~np.isnan(grade)
        assert told["agreement"][split]["pairs"] == rows.sum() > 0
        judged = rows & ((grade >= 2.67) | (grade <= 2.0))
        auc = roc_auc_score(grade[judged] >= 2.67, expected[judged])
        assert told["agreement"][split]["auc"] == pytest.approx(auc, abs=1e-9)
        ranks = [_mean_ranks(values[rows]) for values in (expected, grade)]
        assert told["agreement"][split]["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + (values == value).sum() / 2 for value in values])


def test_two_ranks_write_what_one_writes(folder: Path, tmp_path: Path) -> None:
    launch("teach", arguments(folder, tmp_path / "out"), nproc=2)
    assert contents(tmp_path / "out") == contents(folder / "whole")


@pytest.mark.parametrize("parts", [1, 8])
def test_killed_at_any_moment_and_run_again_it_ends_the_same(folder: Path, tmp_path: Path, parts: int) -> None:
    out = tmp_path / "out"
    process = Forked("prectr_torchrec.text.teach:main", [(arguments(folder, out),)], [{}], tmp_path / "said")
    until = time.monotonic() + 120
    while len(list(out.glob("part-*.parquet"))) < parts and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    process.kill()
    assert process.poll() == -signal.SIGKILL, process.printed
    finished = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(finished) >= parts
    teach.main(arguments(folder, out))
    assert contents(out) == contents(folder / "whole")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "nothing is done twice"


def test_a_finished_job_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()}
    teach.main(arguments(folder, folder / "whole"))
    assert {path: path.stat().st_mtime_ns for path in (folder / "whole").iterdir()} == before


def test_another_teacher_on_the_same_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    other = classifier(tmp_path / "other")
    (other / "note").write_text("another folder", encoding="utf-8")
    with pytest.raises(ValueError, match=r"was made from other settings.*\n  teacher.note: None there"):
        teach.main([*arguments(folder, folder / "whole"), "--teacher", str(other)])


def test_a_causal_model_teaches_too(folder: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.yaml"
    prompt.write_text("user: 'Rate {query} : {title}'\nanswers: ['1', '2', '3', '4']", encoding="utf-8")
    model = str(causal_teacher(tmp_path / "causal", trained=True))
    given = [
        "--teacher",
        model,
        "--pairs",
        str(folder / "pairs.parquet"),
        "--out",
        str(tmp_path / "out"),
        "--prompt",
        str(prompt),
    ]
    teach.main(given)
    scores = read_teacher_scores([tmp_path / "out"])
    assert scores.column_names == ["query_id", "item_id", "probabilities"]
    assert len(scores) == PairsFile.open(folder / "pairs.parquet").rows


def test_teachers_are_averaged(folder: Path, tmp_path: Path) -> None:
    teach.main([*arguments(folder, tmp_path / "flat"), "--temperature", "3"])
    both = read_teacher_scores([folder / "whole", tmp_path / "flat"])
    one, two = (probabilities(read_teacher_scores([path])) for path in (folder / "whole", tmp_path / "flat"))
    np.testing.assert_allclose(probabilities(both), (one + two) / 2, atol=1e-6)
    assert "hidden" not in both.column_names


def test_hidden_states_need_not_be_read(folder: Path) -> None:
    assert read_teacher_scores([folder / "whole"], hidden=False).column_names == ["query_id", "item_id", "probabilities"]


def test_teachers_that_do_not_go_together_are_refused(folder: Path, tmp_path: Path) -> None:
    small_pairs(tmp_path, rows_per_row_group=500)
    teach.main([*arguments(folder, tmp_path / "other"), "--pairs", str(tmp_path / "pairs.parquet")])
    with pytest.raises(ValueError, match=f"{tmp_path / 'other'} grades other pairs than {folder / 'whole'}"):
        read_teacher_scores([folder / "whole", tmp_path / "other"])
    told = json.loads((tmp_path / "other" / "teach.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "teach.json").write_text(json.dumps(told | {"boundaries": [1.2, 1.5, 2.0]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has levels bounded by \[1.2, 1.5, 2.0\].*only teachers of the same levels"):
        read_teacher_scores([folder / "whole", tmp_path / "other"])


def test_a_wrong_option_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teach: temperature: Input should be greater than 0; got '0'"):
        teach.main([*arguments(folder, tmp_path / "out"), "--temperature", "0"])


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not \(wholly\) taught, teach.json is missing; run `prectr teach`"):
        read_teacher_scores([tmp_path])


def test_options_reach_the_teacher_by_the_command_line(folder: Path, tmp_path: Path) -> None:
    options = ["--temperature", "2", "--max-length", "20", "--max-tokens", "300", "--precision", "bf16"]
    given = ["--teacher", folder / "classifier", "--pairs", folder / "pairs.parquet", "--out", tmp_path / "out", *options]
    printed = prectr("teach", *map(str, given))
    told = json.loads((tmp_path / "out" / "teach.json").read_text(encoding="utf-8"))
    expected = TeacherOptions(temperature=2, max_length=20, max_tokens=300, precision="bf16").model_dump(mode="json")
    assert told["settings"]["options"] == expected
    assert f"{told['rows']:,} pairs" in printed
    assert pq.read_metadata(tmp_path / "out" / "part-00000.parquet").num_rows == 50
