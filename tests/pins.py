"""Values that no change may move unnoticed: measured anew and compared with the files of `tests/pins/`.

    python tests/pins.py                   compares as the tests do
    python tests/pins.py --write           writes what is missing or differs, and names it for the commit
    python tests/pins.py --exact           compares all digits: for a refactoring, on one machine
    python tests/pins.py losses scores     these files alone; without `quality` it takes half the time

A refactoring begins with `--write --folder DIR`, which keeps this machine's own values, and is held against them with
`--exact --folder DIR`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "pins"
TOLERANCES = {
    "samples": 1e-6,
    "distillation": 1e-4,
    "losses": 1e-4,
    "losses_on_two_ranks": 1e-4,
    "predictions": 1e-4,
    "scores": 1e-4,
    "quality": 0.01,
}
"""How far a number may be from its pin, by file; `docs/reliability.md` says what other processors and small changes move."""
HOW = "`python tests/pins.py --write` pins it; the commit says so"


def read_pins(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def differences(
    name: str, measured: dict[str, Any], folder: Path = FOLDER, *, entry: str | None = None, exact: bool = False
) -> list[str]:
    """What differs from the pins of a file, a line each; nothing where all is as pinned.

    Args:
        name: of the file.
        measured: its values now.
        folder: where the pins are.
        entry: the one of them to compare; None: all.
        exact: every digit, and what stands under `bits`, which is a processor's own.
    """
    pinned, plain = read_pins(name, folder), json.loads(_format(measured))
    if entry is not None:
        pinned, plain = ({key: value for key, value in pins.items() if key == entry} for pins in (pinned, plain))
    tolerance = 0.0 if exact else TOLERANCES[name]
    return [f"{name}: {line}" for line in _differences(pinned, plain, tolerance)]


def write_pins(name: str, measured: dict[str, Any], folder: Path = FOLDER, *, exact: bool = False) -> list[str]:
    """Writes the entries of a file that differ from their pins, and drops those of what is no more; returns their names."""
    pinned, plain = read_pins(name, folder), json.loads(_format(measured))
    tolerance = 0.0 if exact else TOLERANCES[name]
    changed = [key for key in plain if key not in pinned or any(_differences(pinned[key], plain[key], tolerance))]
    changed += [key for key in pinned if key not in plain]
    kept = {key: plain[key] if key in changed else pinned[key] for key in plain}
    folder.mkdir(parents=True, exist_ok=True)
    if changed:
        (folder / f"{name}.json").write_text(_format(kept) + "\n", encoding="utf-8")
    return changed


def _differences(pinned: Any, measured: Any, tolerance: float, path: str = "") -> Iterator[str]:
    if isinstance(pinned, dict) and isinstance(measured, dict):
        for key in {**pinned, **measured}:
            here = f"{path}.{key}" if path else key
            if key == "bits" and tolerance:
                continue
            if key not in pinned:
                yield f"{here} has no pin; {HOW}"
            elif key not in measured:
                yield f"{here} is pinned and is no more; {HOW}"
            else:
                yield from _differences(pinned[key], measured[key], tolerance, here)
    elif isinstance(pinned, list) and isinstance(measured, list) and len(pinned) == len(measured):
        wrong = [
            (n, *pair) for n, pair in enumerate(zip(pinned, measured, strict=True), 1) if any(_differences(*pair, tolerance))
        ]
        if wrong:
            first, was, now = wrong[0]
            yield f"{path}: {len(wrong)} of {len(pinned)} differ, the first is number {first}: {was!r} pinned, {now!r} now"
    elif isinstance(pinned, float) and isinstance(measured, float):
        if not abs(pinned - measured) <= tolerance:  # NaN is as pinned nowhere
            yield f"{path}: {pinned!r} pinned, {measured!r} now"
    elif pinned != measured:
        yield f"{path}: {pinned!r} pinned, {measured!r} now"


def _format(value: Any, indent: str = "") -> str:
    """JSON with nine digits a number, which tell every float32 from its neighbours; a list of numbers is one line."""
    if isinstance(value, dict):
        inner = indent + " "
        lines = [f"{inner}{json.dumps(key)}: {_format(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_format(item, indent) for item in value)}]"
    if isinstance(value, float):
        return json.dumps(float(f"{value:.9g}"))
    return json.dumps(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{', '.join(TOLERANCES)}; default: all")
    parser.add_argument("--write", action="store_true", help="write what is missing or differs")
    parser.add_argument("--exact", action="store_true", help="compare every digit")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="other pins than the repository's")
    arguments = parser.parse_args()
    files = arguments.files or list(TOLERANCES)
    if unknown := sorted(set(files) - set(TOLERANCES)):
        parser.error(f"no file of pins {', '.join(unknown)}; there are {', '.join(TOLERANCES)}")

    import conftest  # noqa: F401  sets threads, before torch is imported
    from pinned_runs import measure, measure_quality

    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "runs") if files != ["quality"] else {}
        if "quality" in files:
            found["quality"] = measure_quality(Path(folder) / "job")
    found = {name: found[name] for name in files}
    if arguments.write:
        changed = {name: write_pins(name, values, arguments.folder, exact=arguments.exact) for name, values in found.items()}
        for name in filter(changed.get, changed):
            print(f"{arguments.folder / name}.json: {', '.join(changed[name])}")
        print("name these in the commit" if any(changed.values()) else "all as pinned; nothing written")
        return 0
    lines = [
        line for name, values in found.items() for line in differences(name, values, arguments.folder, exact=arguments.exact)
    ]
    print("\n".join(lines) or "all as pinned")
    return bool(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
