"""Takes pictures of the ranking page and of the report: `python docs/figures/screenshots.py FOLDER [OUT]`.

FOLDER is where the commands of docs/start.md ran: it has `model`, `samples` and `report.html`. Needs an installed Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
SIZE = {"width": 1000, "height": 640}
QUERY = "oak shelf"


def find_chromium() -> str | None:
    """The browser that is installed, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def take(folder: Path, out: Path, chromium: str) -> None:
    """Writes `page.png` and `report.png`."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take_page(browser, folder, out / "page.png")
        page = browser.new_page(viewport=SIZE)
        page.goto((folder / "report.html").resolve().as_uri())
        page.screenshot(path=out / "report.png")
        browser.close()


def take_page(browser: Browser, folder: Path, picture: Path) -> None:
    """The ranking page of a server that runs meanwhile."""
    serve = [sys.executable, "-m", "prectr_torchrec.cli", "serve", "--model", folder / "model", "--port", "0"]
    command = [*serve, "--demo-page", folder / "samples" / "test", "--deadline", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            port = next(found[1] for line in server.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
            page = browser.new_page(viewport=SIZE)
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_label("Query").fill(QUERY)
            page.keyboard.press("Enter")
            page.wait_for_selector("#personal li")
            page.screenshot(path=picture)
        finally:
            server.terminate()


if __name__ == "__main__":
    if (found := find_chromium()) is None:
        sys.exit("no Chromium is installed")
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE, found)
