"""How the documents read, by `benchmarks/words.py`."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

WORDS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "words.py"))


def test_pages_sentences_and_paragraphs_are_short() -> None:
    found = WORDS["pages"]()
    assert len(found) > 20
    assert not WORDS["over"](found)


@pytest.mark.parametrize(
    ("text", "words", "sentences", "longest"),
    [
        ("# Title\n\nTwo words. And three words.\n\n    code is none\n", 6, [2, 3], 5),
        ("```sh\nprectr plan\n```\n\n| a | table |\n|---|---|\n", 2, [], 0),
        ("- one [linked page](there.md)\n- two, and a line\n  that goes on\n", 10, [3, 7], 7),
    ],
)
def test_it_counts_prose_alone(text: str, words: int, sentences: list[int], longest: int) -> None:
    page = WORDS["measure"]("docs/some.md", text)
    assert (page.words, page.sentences, page.longest) == (words, sentences, longest)
