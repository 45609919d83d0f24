"""A shop's export as it is: three CSV files with names of its own."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

import numpy as np

START = datetime.datetime(2026, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
TERMS = ("oak shelf", "Oak  Shelf", "garden chair", "lamp", "LAMP ")


def write_csv(path: Path, delimiter: str, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_export(folder: Path, searches: int = 240) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = ("Oak shelf", "Garden chair", "Lamp", "Oak lamp")
    products = [
        {
            "sku": f"sku-{n}",
            "name": f"{names[n % 4]} {n}",
            "department": ("indoor", "garden")[n % 2],
            "maker": f"maker {n % 5}" if n % 7 else "",
            "price": "" if n % 6 == 0 else f"{5 + n * 1.5:.2f}",
            "listed_at": (START - datetime.timedelta(days=n)).isoformat(),
            "tags": "|".join(("oak", "new", "sale")[: n % 4]),
        }
        for n in range(40)
    ]
    results, events = [], []
    for search in range(searches):
        at = START + datetime.timedelta(minutes=90 * search)
        shown = rng.choice(40, 5, replace=False)
        for rank, product in enumerate(shown):
            row = {"search": f"s{search}", "at": at.isoformat(), "customer": f"c{search % 12}" if search % 3 else ""}
            row |= {
                "term": TERMS[search % 5],
                "sku": f"sku-{product}",
                "rank": rank,
                "engine_score": round(float(rng.random()), 3),
            }
            results.append(row)
            happened = [
                kind for kind, chance in (("click", 0.4), ("add_to_cart", 0.4), ("purchase", 0.5)) if rng.random() < chance
            ]
            for after, kind in enumerate(("click", "add_to_cart", "purchase")):
                if kind not in happened:
                    break
                time = at + datetime.timedelta(minutes=1 + 20 * after)
                events.append({"search": f"s{search}", "sku": f"sku-{product}", "kind": kind, "at": time.isoformat()})
    for name, delimiter, rows in (("results", ";", results), ("products", ",", products), ("events", ",", events)):
        write_csv(folder / f"{name}.csv", delimiter, rows)
