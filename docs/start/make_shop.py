"""Writes a made-up shop's export, three CSV files with names of its own: `python docs/start/make_shop.py shop`.

Users click what fits their words, a sale more often, and what stands further down less often.
"""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np

START = datetime.datetime(2026, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
TERMS = ("oak shelf", "Oak  Shelf", "garden chair", "lamp", "LAMP ")
NAMES = ("Oak shelf", "Garden chair", "Lamp", "Oak lamp")
PRODUCTS = 40
AFTER_CLICK = (("add_to_cart", 0.4), ("purchase", 0.5))
"""What follows a click, each after the one before it, and how often."""


def write_csv(path: Path, delimiter: str, rows: list[dict[str, Any]]) -> None:
    """A file of rows that have the same keys."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def products() -> list[dict[str, Any]]:
    """The catalogue: some prices, makers and tags are missing."""
    return [
        {
            "sku": f"sku-{n}",
            "name": f"{NAMES[n % 4]} {n}",
            "department": ("indoor", "garden")[n % 2],
            "maker": f"maker {n % 5}" if n % 7 else "",
            "price": "" if n % 6 == 0 else f"{5 + n * 1.5:.2f}",
            "listed_at": (START - datetime.timedelta(days=n)).isoformat(),
            "tags": "|".join(("oak", "new", "sale")[: n % 4]),
        }
        for n in range(PRODUCTS)
    ]


def click_chance(term: str, product: int, rank: int) -> float:
    """Of a product at a rank, for words."""
    words = set(term.lower().split())
    fits = len(words & set(NAMES[product % 4].lower().split())) / len(words)
    return float((0.08 + 0.6 * fits + 0.15 * (product % 4 == 3)) * (1, 0.85, 0.7, 0.6, 0.5)[rank])


def write_export(folder: Path, searches: int = 1500) -> None:
    """Writes results.csv, products.csv and events.csv into a new folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    results, events = [], []
    for search in range(searches):
        at, term = START + datetime.timedelta(minutes=20 * search), TERMS[search % 5]
        customer = f"c{search % 12}" if search % 3 else ""
        for rank, product in enumerate(rng.choice(PRODUCTS, 5, replace=False).tolist()):
            shown = {"search": f"s{search}", "at": at.isoformat(), "customer": customer, "term": term, "sku": f"sku-{product}"}
            results.append({**shown, "rank": rank, "engine_score": round(float(rng.random()), 3)})
            for after, (kind, chance) in enumerate((("click", click_chance(term, product, rank)), *AFTER_CLICK)):
                if rng.random() >= chance:
                    break
                time = (at + datetime.timedelta(minutes=1 + 20 * after)).isoformat()
                events.append({"search": f"s{search}", "sku": f"sku-{product}", "kind": kind, "at": time})
    for name, delimiter, rows in (("results", ";", results), ("products", ",", products()), ("events", ",", events)):
        write_csv(folder / f"{name}.csv", delimiter, rows)


if __name__ == "__main__":
    write_export(Path(sys.argv[1]), *map(int, sys.argv[2:]))
