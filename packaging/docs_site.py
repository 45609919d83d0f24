"""What the documentation's site is made of besides the pages in docs/: the README as its home, and a reference from the code.

A hook of MkDocs and an extension of Griffe, so that the pages stay as a code host shows them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

REFERENCE = {
    "modules": ["prectr_torchrec.modules"],
    "data": ["prectr_torchrec.data.reader.batch", "prectr_torchrec.data.reader.reader"],
    "serving": ["prectr_torchrec.serving.ranker", "prectr_torchrec.serving.request", "prectr_torchrec.serving.export"],
    "config": [f"prectr_torchrec.config.{module}" for module in ("run", "data", "kinds", "losses", "text", "tables", "train")],
}
"""Page -> what it tells of."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    root = Path(config.config_file_path).parent
    readme = (root / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace("](CHANGELOG.md", "](changes.md")
    pages = {"index.md": readme, "changes.md": (root / "CHANGELOG.md").read_text(encoding="utf-8")}
    for name, of in REFERENCE.items():
        pages[f"reference/{name}.md"] = "\n".join([f"# {name.capitalize()}", *(f"\n::: {module}\n" for module in of)])
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links from docs/ to the README lead to the home."""
    return markdown.replace("](../README.md", "](index.md")


class PlainMath(griffe.Extension):
    """Formulas and references of docstrings as code: no script typesets them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring is not None:
            text = re.sub(r":(?:math|class|func):`([^`]*)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^\.\. math:: (.*(?:\n +\S.*)*)", r"    \1", text, flags=re.MULTILINE)
