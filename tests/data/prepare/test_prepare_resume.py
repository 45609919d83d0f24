"""A killed preparation goes on where it stopped, ends the same, and never mixes two settings; its memory is bounded."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import random_log, write_log

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.runs import workspace

DATA = DataConfig(history_length=5, peer_length=5, requests_per_shard=30, requests_per_row_group=10)
TEXT = TextConfig(vocab_size=300)


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file."""
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


KILLED = f"""
    import os, signal, sys
    from pathlib import Path
    from prectr_torchrec.config.run import DataConfig, TextConfig
    from prectr_torchrec.data.prepare.prepare import prepare
    raw, out, place, whole = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    replace = os.replace
    def killing(source, target):  # the moment between writing and renaming is the worst one
        if whole == "after":
            replace(source, target)
        if Path(target).relative_to(out) == Path(place):
            os.kill(os.getpid(), signal.SIGKILL)
        if whole == "before":
            replace(source, target)
    os.replace = killing
    data, text = DataConfig.model_validate_json({DATA.model_dump_json()!r}), TextConfig(vocab_size=300)
    prepare(data, text, raw, out, progress=False)
"""


@pytest.mark.parametrize(
    ("place", "whole"),
    [
        ("work/settings.json", "before"),
        ("work/log", "before"),
        ("work/examination.json", "before"),
        ("work/by_query", "before"),
        ("work/train", "after"),
        ("tokenizer", "before"),
        ("train/part-00001.parquet", "before"),
        ("test/part-00000.parquet", "after"),
        ("prepared.json", "after"),
    ],
)
def test_killed_and_run_again_it_ends_the_same(tmp_path: Path, place: str, whole: str) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    expected = prepare(DATA, TEXT, raw, tmp_path / "whole", progress=False)
    killed = run_script(KILLED, raw, tmp_path / "out", place, whole)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "out" / "prepared.json").exists() == (place == "prepared.json")
    assert prepare(DATA, TEXT, raw, tmp_path / "out", progress=False) == expected
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_finished_shards_are_kept(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    run_script(KILLED, raw, tmp_path / "out", "train/part-00001.parquet", "before")
    first = tmp_path / "out" / "train" / "part-00000.parquet"
    written = first.stat().st_mtime_ns
    prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)
    assert first.stat().st_mtime_ns == written


def test_what_is_finished_is_returned_at_once(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    manifest = prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)
    before = digests(tmp_path / "out")
    assert prepare(DATA.model_copy(update={"memory": "300MB"}), TEXT, raw, tmp_path / "out", progress=False) == manifest
    assert digests(tmp_path / "out") == before
    assert not (tmp_path / "out" / "work").exists()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)
    with pytest.raises(
        ValueError,
        match=r"was made from other settings; remove it or choose another folder:\n  data.history_length: 5 there, 6 now$",
    ):
        prepare(DATA.model_copy(update={"history_length": 6}), TEXT, raw, tmp_path / "out", progress=False)


def test_other_raw_files_are_refused_by_name(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)
    write_log(random_log(1), tmp_path / "raw")
    with pytest.raises(ValueError, match=r"files..*impressions.parquet.modified: \d+ there, \d+ now"):
        prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)


@pytest.mark.parametrize("place", ["work/log", "train/part-00001.parquet"])
def test_an_unfinished_preparation_makes_room_for_mended_settings(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    run_script(KILLED, raw, tmp_path / "out", place, "after")
    mended = DATA.model_copy(update={"history_length": 3})
    found = prepare(mended, TEXT, raw, tmp_path / "out", progress=False)
    said = capsys.readouterr().err
    assert said.startswith("note: an unfinished job there is begun anew") and "data.history_length: 5 there, 3 now" in said
    assert found == prepare(mended, TEXT, raw, tmp_path / "whole", progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_log_that_is_mended_is_taken_where_it_failed(tmp_path: Path) -> None:
    log = random_log()
    log["impressions"][0]["click"] = 7
    raw = write_log(log, tmp_path / "raw")
    with pytest.raises(ValueError, match="row 1: 7; expected 0 or 1"):
        prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)
    log["impressions"][0]["click"] = 1
    write_log(log, tmp_path / "raw")
    assert prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)["splits"]["train"]["requests"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    raw, victim = write_log(random_log(), tmp_path / "raw"), tmp_path / "victim"
    victim.mkdir()
    for name in ("work", "train"):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        (out / name).symlink_to(victim)
        with pytest.raises(ValueError, match=f"{name} is a link; remove it"):
            prepare(DATA, TEXT, raw, out, progress=False)
    assert not list(victim.iterdir())


def test_names_of_attributes_never_become_paths(tmp_path: Path) -> None:
    log, name = random_log(), "../../../../ESC"
    for table in ("items", "users"):
        rows = log.setdefault(table, [{"user_id": 1000 + i} for i in range(4)])
        for row in rows:
            row[name] = 5
    raw = write_log(log, tmp_path / "raw")
    data = DATA.model_copy(update={"item_attributes": ["category_id", name], "user_attributes": [name]})
    prepare(data, TEXT, raw, tmp_path / "out", progress=False)
    assert not list(tmp_path.parent.rglob("ESC*")) and not Path("/ESC").exists()
    assert f"candidate_{name}" in pq.read_schema(tmp_path / "out" / "train" / "part-00000.parquet").names


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty and holds nothing that this command began"):
        prepare(DATA, TEXT, raw, tmp_path / "out", progress=False)


def test_equal_settings_have_equal_digests() -> None:
    a = {"x": 1, "y": {"z": [1, 2]}}
    assert workspace.digest(a) == workspace.digest(json.loads(json.dumps(dict(reversed(a.items())))))


PEAK = """
    import sys, threading, time
    from pathlib import Path
    from prectr_torchrec.config.run import DataConfig, TextConfig
    from prectr_torchrec.data.prepare.prepare import prepare
    import prectr_torchrec.data.tokenizer
    def anonymous():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
    start, peak = anonymous(), 0
    def watch():
        global peak
        while True:
            peak = max(peak, anonymous())
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
    data = DataConfig(memory=sys.argv[3], history_length=10, peer_length=10)
    prepare(data, TextConfig(vocab_size=300), Path(sys.argv[1]), Path(sys.argv[2]), progress=False)
    print(peak - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads anonymous memory from /proc")
def test_memory_stays_within_the_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, raw = 400_000, tmp_path / "raw"
    raw.mkdir()
    request = np.arange(size) // 12
    queries, items = 3000, 20_000
    tables = {
        "impressions": {
            "request_id": request,
            "timestamp": rng.integers(0, 10**6, size)[request],
            "user_id": rng.integers(0, 2**60, size)[request // 20],
            "query_id": rng.integers(0, queries, size)[request],
            "item_id": (request * 7 + np.arange(size) % 12) % items,
            "click": rng.integers(0, 2, size),
        },
        "items": {
            "item_id": np.arange(items),
            "title": [f"title {i}" for i in range(items)],
            "category_id": np.arange(items) % 9,
            "brand_id": np.arange(items) % 99,
        },
        "queries": {"query_id": np.arange(queries), "query": [f"query {q}" for q in range(queries)]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), raw / f"{name}.parquet")
    done = run_script(PEAK, raw, tmp_path / "out", "128MB")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128 * 2**20


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    raw = write_log(random_log(), tmp_path / "raw")
    with pytest.raises(ValueError, match=r"data.memory: 1MB is too little for this log"):
        prepare(DATA.model_copy(update={"memory": "1MB"}), TEXT, raw, tmp_path / "out", progress=False)
