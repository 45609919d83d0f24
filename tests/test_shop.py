"""A shop's export as it is: three CSV files with names of its own, and the configuration of the documentation."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from shop_export import START, write_export
from small_job import SMALL, prectr

from prectr_torchrec import Ranker

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "shop.md").read_text(encoding="utf-8")
CONFIG = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SETTINGS = [word for setting in SMALL if "stages" not in setting for word in ("--set", setting)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_export(folder / "shop")
    assert CONFIG is not None and CONFIG[1].count("\n") <= 40
    (folder / "shop.yaml").write_text(CONFIG[1], encoding="utf-8")
    prectr("prepare", "--config", folder / "shop.yaml", "--raw", folder / "shop", "--out", folder / "samples", *SETTINGS)
    prectr("train", "--config", folder / "shop.yaml", "--data", folder / "samples", "--run", folder / "run", *SETTINGS)
    prectr("export", "--run", folder / "run", "--out", folder / "model")
    return folder


def samples(shop: Path) -> list[dict[str, Any]]:
    files = sorted(path for split in ("train", "validation", "test") for path in (shop / "samples" / split).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_terms_of_one_text_are_one_query_and_ranks_times_and_cells_are_read_as_they_are(shop: Path) -> None:
    rows = samples(shop)
    assert len(rows) == 240
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
    request = json.loads(re.findall(r"```\n(\{.*?\})\n```", PAGE, re.DOTALL)[0])
    request["candidates"].append({"item_id": "sku-8", "title": "Oak shelf 8"})
    scores = ranker.score(request)
    assert scores.item_id.tolist() == ["sku-3", "sku-8"]
    by_text = [ranker.score({**request, "query": text}).click_probability for text in ("oak shelf", "OAK  shelf ")]
    given = ranker.score({**request, "query_id": "Oak Shelf"}).click_probability
    np.testing.assert_allclose(by_text[0], given, rtol=1e-6)
    np.testing.assert_allclose(by_text[0], by_text[1], rtol=1e-6)


def test_it_is_served(shop: Path) -> None:
    command = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", str(shop / "model"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            port = next(int(found[1]) for line in server.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/v1/rank", re.findall(r"```\n(\{.*?\})\n```", PAGE, re.DOTALL)[0])
            answer = connection.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["candidates"][0]["item_id"] == "sku-3"
        finally:
            server.terminate()
