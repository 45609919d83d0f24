"""Measures how the documents read: words of a page, words of a sentence, words of a paragraph.

`python benchmarks/words.py` prints a line for each page, and says what is over its bar. Code, tables, headings and captions of
pictures are no sentences; the words of a page are those of its prose, tables and headings.
"""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README_WORDS, PAGE_WORDS, PARAGRAPH_WORDS, SENTENCE_WORDS = 700, 600, 90, 18
GENERATED = ("reference/commands.md", "reference/config.md", "reference/samples.md")


class Page(NamedTuple):
    """What one page measures.

    Attributes:
        name: below the checkout.
        words: of all of it but code.
        sentences: words of each sentence.
        longest: words of the longest paragraph or list item.
    """

    name: str
    words: int
    sentences: list[int]
    longest: int


def measure(name: str, text: str) -> Page:
    """A page of Markdown.

    Example::

        page = measure("a.md", "# Title\\n\\nTwo words. And three words.\\n\\n    code\\n")
        assert page.sentences == [2, 3] and page.words == 6 and page.longest == 5
    """
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) |\||#)", text) if block.strip()]
    blocks = [block for block in blocks if not block.strip("\n").startswith("    ")]
    prose = [plain for block in blocks if not re.match(r"\s*([|#]|!\[)", block) and (plain := _plain(block))]
    sentences = [len(words) for block in prose for part in re.split(r"(?<=[.?!])\s+", block) if (words := part.split())]
    return Page(name, sum(_words(_plain(block)) for block in blocks), sentences, max(map(_words, prose), default=0))


def pages() -> list[Page]:
    """The README and all pages of docs/ that are written by hand."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    found = zip(names, paths, strict=True)
    return [measure(name, path.read_text(encoding="utf-8")) for name, path in found if not name.endswith(GENERATED)]


def over(found: list[Page]) -> list[str]:
    """What is over its bar, a line each."""
    wrong = []
    for page in found:
        most = {"README.md": README_WORDS}.get(page.name, PAGE_WORDS if _is_short(page.name) else sys.maxsize)
        if page.words > most:
            wrong.append(f"{page.name}: {page.words} words, {most} are the most")
        if page.longest > PARAGRAPH_WORDS:
            wrong.append(f"{page.name}: a paragraph of {page.longest} words, {PARAGRAPH_WORDS} are the most")
    if (middle := median(found)) > SENTENCE_WORDS:
        wrong.append(f"the median sentence has {middle:g} words, {SENTENCE_WORDS} are the most")
    return wrong


def median(found: list[Page]) -> float:
    """Words of the median sentence of all pages."""
    return statistics.median(count for page in found for count in page.sentences)


def _is_short(name: str) -> bool:
    return name == "docs/start.md" or name.startswith("docs/howto/")


def _plain(block: str) -> str:
    """Without marks of Markdown: a link is its text."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", block)
    return " ".join(re.sub(r"^\s*(?:[-*]|\d+\.)\s|[|*#]|-{3,}", " ", text).split())


def _words(text: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def main() -> None:
    """Prints all pages; ends with 1 where anything is over its bar."""
    found = pages()
    print(f"{'page':<36}{'words':>7}{'sentence':>10}{'longest paragraph':>19}")
    for page in found:
        middle = statistics.median(page.sentences) if page.sentences else 0
        print(f"{page.name:<36}{page.words:>7}{middle:>10g}{page.longest:>19}")
    print(f"median sentence of all: {median(found):g} words")
    wrong = over(found)
    print("\n".join(["", "over the bar:", *wrong]) if wrong else "\nnothing is over its bar")


if __name__ == "__main__":
    main()
