"""What the documentation's site is made of besides the pages in docs/: the README as its home, and a reference from the code.

A hook of MkDocs and an extension of Griffe, so that the pages stay as a code host shows them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

REFERENCE = {
    "modules": ["prectr_torchrec.modules"],
    "data": ["prectr_torchrec.data.reader.batch", "prectr_torchrec.data.reader.reader"],
    "serving": ["prectr_torchrec.serving.ranker", "prectr_torchrec.serving.request", "prectr_torchrec.serving.export"],
}
"""Page -> what it tells of."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    root = Path(config.config_file_path).parent
    readme = (root / "README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace("](CHANGELOG.md", "](changes.md")
    pages = {"index.md": readme, "changes.md": (root / "CHANGELOG.md").read_text(encoding="utf-8")}
    for name, of in REFERENCE.items():
        pages[f"reference/{name}.md"] = "\n".join([f"# {name.capitalize()}", *(f"\n::: {module}\n" for module in of)])
    notebook = json.loads((root / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    parts = [part for number, cell in enumerate(notebook["cells"]) for part in _cell(cell, number)]
    pages["tour.md"] = "\n".join(part for part in parts if isinstance(part, str))
    for path, content in [*pages.items(), *(part for part in parts if not isinstance(part, str))]:
        files.append(File.generated(config, path, content=content))
    return files


def _cell(cell: dict[str, Any], number: int) -> Iterator[str | tuple[str, bytes]]:
    """A cell of a notebook as Markdown, and its plots: path and content."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield f"{source}\n"
        return
    magic, _, script = source.partition("\n")
    yield f"```sh\n{script}\n```\n" if magic == "%%bash" else f"```python\n{source}\n```\n"
    for output in cell["outputs"]:
        if "text" in output:
            yield f"```text\n{''.join(output['text']).rstrip()}\n```\n"
        elif (plot := output.get("data", {}).get("image/png")) is not None:
            yield f"![Plot of the cell above](tour-{number}.png)\n"
            yield f"tour-{number}.png", base64.b64decode("".join(plot))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links from docs/ to the README lead to the home, and those to the notebook to its page."""
    return (
        markdown.replace("](../README.md", "](index.md")
        .replace("](tour.ipynb", "](tour.md")
        .replace("](../../CHANGELOG.md", "](../changes.md")
    )


class PlainMath(griffe.Extension):
    """Formulas and references of docstrings as code: no script typesets them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring is not None:
            text = re.sub(r":(?:math|class|func):`([^`]*)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^\.\. math:: (.*(?:\n +\S.*)*)", r"    \1", text, flags=re.MULTILINE)
