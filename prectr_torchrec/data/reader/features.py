"""What the features of a configuration may be: sample columns of ids, and the tokens of titles."""

from __future__ import annotations

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.tables import FeatureConfig, bag_tables
from prectr_torchrec.data.column_kinds import Id
from prectr_torchrec.data.columns import sample_columns
from prectr_torchrec.system.errors import nearest

TITLE_TOKENS = "candidate_title_tokens"
"""The feature that is no sample column: a bag of the title's token ids, without the special ones."""


def check_features(data: DataConfig, features: dict[str, FeatureConfig]) -> None:
    """Raises ValueError where a feature is no column of ids, or a bag of title tokens in a table with sequences."""
    kinds = {column.name: column.kind for column in sample_columns(data)}
    valid = [*(name for name, kind in kinds.items() if isinstance(kind, Id) and kind.looked_up), TITLE_TOKENS]
    for name, feature in features.items():
        if name in kinds and name not in valid:
            raise ValueError(f"features.{name}: this sample column holds no ids (valid: {', '.join(valid)})")
        if name not in valid:
            raise ValueError(f"features.{name}: no sample column of ids has this name{nearest(name, valid)}")
        if name == TITLE_TOKENS and feature.table not in bag_tables(features):
            raise ValueError(f"features.{name}: table {feature.table!r} also serves sequences or requests; give it its own")
