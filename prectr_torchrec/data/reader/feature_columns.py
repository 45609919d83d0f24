"""What the features of a configuration may be: sample columns of ids, and the tokens of titles."""

from __future__ import annotations

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.tables import FeatureConfig, bag_tables
from prectr_torchrec.data.column_kinds import Id
from prectr_torchrec.data.columns import family_of, sample_columns
from prectr_torchrec.data.list_kinds import Ids
from prectr_torchrec.system.errors import nearest

TITLE_TOKENS = "candidate_title_tokens"
"""The feature that is no sample column: a bag of the title's token ids, without the special ones."""


def check_features(data: DataConfig, features: dict[str, FeatureConfig]) -> None:
    """Raises ValueError where a feature is no column of ids, or a bag of title tokens in a table with sequences."""
    kinds = {column.name: column.kind for column in sample_columns(data)}
    ids = (name for name, kind in kinds.items() if isinstance(kind, Ids) or (isinstance(kind, Id) and kind.looked_up))
    valid = [*ids, TITLE_TOKENS]
    for name, feature in features.items():
        column = feature.column or name
        where = f"features.{name}" if column == name else f"features.{name}.column: {column}"
        if column in kinds and column not in valid:
            raise ValueError(f"{where}: this sample column holds no ids (valid: {', '.join(valid)})")
        if column not in valid:
            raise ValueError(f"{where}: no sample column of ids has this name{nearest(column, valid)}")
        if family_of(name) != family_of(column):
            raise ValueError(f"{where}: the feature's name must begin as the column's does")
        if column == TITLE_TOKENS and feature.table not in bag_tables(features):
            raise ValueError(f"features.{name}: table {feature.table!r} also serves sequences or requests; give it its own")
