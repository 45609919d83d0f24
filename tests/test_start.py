"""The tutorial, from top to bottom as it stands, on fewer searches and a smaller encoder; and the Python of the README."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_shop import START, write_export
from PIL import Image
from small_job import SMALL, prectr
from typer.testing import CliRunner

from prectr_torchrec import Ranker
from prectr_torchrec.cli.main import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|text)\n(.*?)```", PAGE, re.DOTALL)
SETTINGS = [word for setting in SMALL if "stages" not in setting for word in ("--set", setting)]
SEARCHES = 240


def commands() -> Iterator[tuple[list[str], str]]:
    """The page's `prectr` commands but the server's, each with the output that stands below it."""
    for place, (kind, text) in enumerate(BLOCKS):
        shown = BLOCKS[place + 1][1] if BLOCKS[place + 1 :] and BLOCKS[place + 1][0] == "text" else ""
        for line in text.splitlines() if kind == "sh" else ():
            words = shlex.split(line) if line.startswith("prectr ") else [""]
            if words[0] == "prectr" and words[1] != "serve":
                yield words[1:], shown if line == text.splitlines()[-1] else ""


def plain(text: str) -> str:
    """Without figures, and however wide columns are."""
    return " ".join(re.sub(r"\d[\d,.:-]*", "#", text).replace("+#", "#").replace("-#", "#").split())


def run(words: list[str]) -> str:
    """What a command prints; training and evaluation begin ranks, and run in processes of their own."""
    words = [*words, *(SETTINGS if words[0] in ("prepare", "train") else [])]
    if words[0] in ("train", "evaluate"):
        return prectr(*words)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands ran; their outputs are compared with the page's."""
    folder = tmp_path_factory.mktemp("start")
    write_export(folder / "shop", SEARCHES)
    with contextlib.chdir(folder):
        for words, shown in commands():
            output = plain(run(words))
            missing = [line for line in shown.splitlines() if plain(line) not in output]
            assert not [line for line in missing if "the logged order" not in line], output
    return folder


def samples(shop: Path) -> list[dict[str, Any]]:
    files = sorted(path for split in ("train", "validation", "test") for path in (shop / "samples" / split).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def request() -> dict[str, Any]:
    """What the page sends."""
    (body,) = re.findall(r"-d '(\{.*?\})'", PAGE, re.DOTALL)
    return json.loads(body)


def test_terms_of_one_text_are_one_query_and_ranks_times_and_cells_are_read_as_they_are(shop: Path) -> None:
    rows = samples(shop)
    assert len(rows) == SEARCHES
    assert len({row["query_id"] for row in rows}) == len({row["query"] for row in rows}) == 3
    assert {position for row in rows for position in row["candidate_position"]} == {1, 2, 3, 4, 5}
    first = min(row["timestamp"] for row in rows)
    assert first == int(START.timestamp())
    assert {row["user_id"] == 0 for row in rows} == {True, False}
    prices = [price for row in rows for price in row["candidate_price"]]
    assert None in prices and max(price for price in prices if price) > 50
    assert {len(tags) for row in rows for tags in row["candidate_tags"]} == {0, 1, 2, 3}
    assert all(age > 0 for row in rows for age in row["candidate_listed_at"] if age is not None)


def test_carts_and_orders_follow_clicks(shop: Path) -> None:
    labels = [[row[f"candidate_{label}"] for row in samples(shop)] for label in ("click", "cart", "order")]
    counts = [sum(value or 0 for row in rows for value in row) for rows in labels]
    assert counts[0] > counts[1] > counts[2] > 0


def test_a_request_needs_no_more_than_the_query_and_the_products(shop: Path) -> None:
    ranker = Ranker.load(shop / "model")
    scores = ranker.score(request())
    assert scores.item_id.tolist() == ["sku-3", "sku-8"]
    by_text = [ranker.score({**request(), "query": text}).click_probability for text in ("oak shelf", "OAK  shelf ")]
    given = ranker.score({**request(), "query_id": "Oak Shelf"}).click_probability
    np.testing.assert_allclose(by_text[0], given, rtol=1e-6)
    np.testing.assert_allclose(by_text[0], by_text[1], rtol=1e-6)


def test_the_readme_s_python_ranks(shop: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 12
    with contextlib.chdir(shop), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    ranked = [line.split() for line in printed.getvalue().splitlines()]
    assert {item for item, _ in ranked} == {"sku-3", "sku-8"}
    assert float(ranked[0][1]) >= float(ranked[1][1])


def test_pictures_of_the_page_and_the_report_can_be_taken(shop: Path, tmp_path: Path) -> None:
    """Those of the documents: `python docs/figures/screenshots.py FOLDER`."""
    pytest.importorskip("playwright.sync_api")
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "screenshots.py"))
    if (chromium := script["find_chromium"]()) is None:
        pytest.skip("no Chromium is installed")
    with contextlib.chdir(shop):
        run(["report", "run"])
    script["take"](shop, tmp_path, chromium)
    for name in ("page.png", "report.png"):
        taken, committed = (folder / name for folder in (tmp_path, ROOT / "docs" / "figures"))
        assert Image.open(taken).size == Image.open(committed).size
        assert committed.stat().st_size < 150_000
        assert np.unique(np.asarray(Image.open(taken).convert("L"))).size > 50  # letters and colours, no blank page


def test_it_is_served_and_answers_what_the_page_sends(shop: Path) -> None:
    (serve,) = re.findall(r"^prectr (serve .*)$", PAGE, re.MULTILINE)
    command = [sys.executable, "-m", "prectr_torchrec.cli", *shlex.split(serve.replace("8080", "0"))]
    (curl,) = re.findall(r"^curl .*?'$", PAGE, re.MULTILINE | re.DOTALL)
    with subprocess.Popen(command, cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            port = next(found[1] for line in server.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
            script = curl.replace("localhost:8080", f"127.0.0.1:{port}")
            answer = subprocess.run(["bash", "-c", script], env=os.environ, capture_output=True, text=True, timeout=60)
            ranked = json.loads(answer.stdout)["candidates"]
            assert {candidate["item_id"] for candidate in ranked} == {"sku-3", "sku-8"}
            assert ranked[0]["score"] >= ranked[1]["score"]
        finally:
            server.terminate()
