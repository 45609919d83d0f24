"""Samples as a client would send them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from prectr_torchrec.serving.request import GROUPS


def plain_requests(samples: pa.Table) -> list[dict[str, Any]]:
    """Requests of plain values, without predicted levels (the samples have none)."""
    requests = []
    for row in samples.to_pylist():
        request: dict[str, Any] = {}
        columns: dict[str, dict[str, list[Any]]] = {key: {} for key in GROUPS.values()}
        for name, value in row.items():
            if name == "num_candidates" or name.endswith("_trained"):  # no request has these
                continue
            family, _, rest = name.partition("_")
            if family in GROUPS and rest != "predicted":
                columns[GROUPS[family]][rest] = value
            elif family not in GROUPS:
                request[name] = value
        for key, lists in columns.items():
            request[key] = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        requests.append(request)
    return requests
