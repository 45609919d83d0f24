"""The page to look at rankings, in a real browser before a real server."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving.test_server import TOKEN, Server, serving

from prectr_torchrec import Ranker
from prectr_torchrec.serving.page import DemoPage, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> oak & sink"


@pytest.fixture(scope="module")
def samples(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split, with one title that is an attack."""
    folder = tmp_path_factory.mktemp("page")
    titles = exported.samples["candidate_title"].to_pylist()
    titles[0][0] = HOSTILE
    place = exported.samples.schema.get_field_index("candidate_title")
    column = pa.array(titles, exported.samples.schema.field(place).type)
    pq.write_table(exported.samples.set_column(place, exported.samples.schema.field(place), column), folder / "part-0.parquet")
    return folder


@pytest.fixture(scope="module")
def server(exported: Any, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN, encoding="utf-8")
    with serving(exported.folder, token, "--deadline", "30", "--demo-page", str(samples)) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """The page with its ranking, after the token was typed; and what it complained of."""
    page, complaints = browser.new_page(**options), []
    page.set_default_timeout(90_000)  # a busy machine is slow, not wrong
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "data:")) else complaints.append(request.url))
    page.goto(url)
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#personal li")
    del complaints[0]  # the 401 that asked for the token
    return page, complaints


def rows(page: Any, column: str) -> list[str]:
    return page.eval_on_selector_all(f"#{column} li", "found => found.map(row => row.dataset.item)")


def test_both_rankings_are_what_the_ranker_scores(browser: Any, server: Server, samples: Path, ranker: Ranker) -> None:
    page, complaints = opened(browser, server.url)
    query, user = page.get_by_label("Query").input_value(), int(page.get_by_label("User", exact=True).input_value())
    demo = DemoPage(samples)
    given = demo.samples(ranker, query, user)
    wanted = render(given, ranker.score_samples(given, [True, True]), [], demo.item_names)
    for column in ("personal", "plain"):
        assert rows(page, column) == [row["item"] for row in wanted[column]]
        shown = page.eval_on_selector_all(f"#{column} .click", "found => found.map(cell => parseFloat(cell.textContent))")
        assert shown == pytest.approx([100 * row["click"] for row in wanted[column]], abs=0.051)
    assert [row["click"] for row in wanted["personal"]] != [row["click"] for row in wanted["plain"]]
    names = [part["name"] for part in wanted["personal"][0]["parts"]]
    assert names == ["effect own", "effect peers", "taste"]
    for place, name in enumerate(names):
        chips = page.locator("#personal .facts span", has_text=name).all_inner_texts()
        shown = [float(text.removeprefix(name).replace("\N{MINUS SIGN}", "-")) for text in chips]
        assert shown == pytest.approx([row["parts"][place]["value"] for row in wanted["personal"]], abs=0.0051) and any(shown)
    plain = page.locator("#plain .facts span", has_text="effect own").all_inner_texts()
    assert plain == ["effect own 0.00"] * len(wanted["plain"])  # nobody known has no past
    assert not complaints
    page.close()


def test_another_user_and_a_typed_query_are_ranked_by_keyboard_alone(browser: Any, server: Server) -> None:
    page, complaints = opened(browser, server.url)
    page.get_by_label("Query").fill("sink")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?query=sink&**")
    assert all("sink" in title for title in page.locator("#personal .title").all_inner_texts())
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.wait_for_url(f"**&user={page.locator('#user option').nth(2).get_attribute('value')}")
    page.get_by_label("Query").fill("nothing that is sold")
    page.keyboard.press("Enter")
    page.get_by_text("No known title shares a word with this query.").wait_for()
    assert page.locator("#result").is_hidden() and not complaints
    page.close()


def test_titles_are_texts_whatever_they_hold(browser: Any, server: Server, exported: Any) -> None:
    page, complaints = opened(browser, server.url)
    page.get_by_label("Query").fill(exported.samples["query"][0].as_py())
    page.keyboard.press("Enter")
    page.locator("#personal .title", has_text=HOSTILE).wait_for()
    assert page.locator("main img").count() == 0 and page.title().startswith("Search ranking") and not complaints
    page.close()


def test_a_narrow_window_shows_all_without_scrolling_sideways(browser: Any, server: Server) -> None:
    page, _ = opened(browser, server.url, viewport={"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    boxes = [page.locator(f"#{column}").bounding_box() for column in ("personal", "plain")]
    assert boxes[0]["x"] == boxes[1]["x"] and boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    page.close()


def test_the_page_needs_nothing_from_elsewhere_and_shows_nothing_without_the_token(server: Server) -> None:
    with urllib.request.urlopen(server.url) as answer:
        text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=.(https?:|//)|@import|url\(", text)
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    for body in (None, b'{"query": "red", "user": 1}'):
        assert server.call("/demo", body, token=None)[0] == 401
    for body in (b"{", b"[]", b'{"query": 3, "user": 1}', b'{"query": "\\ud800", "user": 1}', b'{"query": "q", "user": "me"}'):
        assert server.call("/demo", body)[0] == 422


def test_a_query_has_its_items_and_others_of_its_words(exported: Any, samples: Path, ranker: Ranker) -> None:
    demo, row = DemoPage(samples), exported.samples.slice(1, 1).to_pylist()[0]
    given = demo.samples(ranker, row["query"], row["user_id"])
    assert set(row["candidate_item_id"]) <= set(given["candidate_item_id"][0].as_py())
    assert given["user_id"].to_pylist() == [row["user_id"], 0] and given["history_item_id"][1].as_py() == []
    assert given["candidate_item_id"][0] == given["candidate_item_id"][1]
    assert set(given["candidate_click"][0].as_py()) == {None} and set(given["candidate_position"][0].as_py()) == {0}


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name a folder of samples"):
        DemoPage(tmp_path)
