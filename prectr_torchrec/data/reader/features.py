"""What the features of a configuration may be: sample columns of ids, and the tokens of titles."""

from __future__ import annotations

import pyarrow as pa

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.flat import FAMILIES
from prectr_torchrec.data.schema import sample_schema
from prectr_torchrec.system.errors import nearest

TITLE_TOKENS = "candidate_title_tokens"
"""The feature that is no sample column: a bag of the title's token ids, without the special ones."""
_NO_IDS = ("request_id", "timestamp", *(f"{family}_{what}" for family in FAMILIES for what in ("age", "predicted")))
"""64-bit sample columns that make no features."""


def check_features(config: RunConfig) -> None:
    """Raises ValueError where a feature is no column of ids, or a bag of title tokens in a table with sequences."""
    columns = {f.name: f.type.value_type if pa.types.is_list(f.type) else f.type for f in sample_schema(config.data)}
    valid = [*(name for name, kind in columns.items() if kind == pa.int64() and name not in _NO_IDS), TITLE_TOKENS]
    for name, feature in config.features.items():
        if name in columns and name not in valid:
            raise ValueError(f"features.{name}: this sample column holds no ids (valid: {', '.join(valid)})")
        if name not in valid:
            raise ValueError(f"features.{name}: no sample column of ids has this name{nearest(name, valid)}")
        if name == TITLE_TOKENS and feature.table not in config.bag_tables():
            raise ValueError(f"features.{name}: table {feature.table!r} also serves sequences or requests; give it its own")
