"""The pages as a code host shows them; `make docs` checks the same links as a site."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What its headings are known by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def links(page: Path) -> set[Path]:
    """Pages that a page links to."""
    found = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def test_the_readme_leads_to_every_page() -> None:
    reached, left = set[Path](), {ROOT / "README.md"}
    while left:
        reached |= left
        left = {target for page in left for target in links(page)} - reached
    assert not [page for page in PAGES if page not in reached and page.name != "CONTRIBUTING.md"]


@pytest.mark.parametrize("name", ["commands_page", "config_page", "samples_page"])
def test_pages_that_are_written_from_the_code_are_current(name: str) -> None:
    """Where they are not: `python packaging/NAME.py`."""
    script = runpy.run_path(str(ROOT / "packaging" / f"{name}.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"]()
