"""What past events have, and which of them a history is made of, as the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import random_log, reference_rows

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.data.reader.feature_columns import check_features


@pytest.mark.parametrize(
    ("history", "peer", "kept"),
    [
        (["brand_id"], None, {"history_brand_id", "peer_brand_id", "peer_category_id"}),
        ([], ["category_id"], {"peer_category_id"}),
    ],
)
def test_past_events_have_the_columns_that_are_asked_for(
    tmp_path: Path, history: list[str] | None, peer: list[str] | None, kept: set[str]
) -> None:
    raw, data = random_log(1), DataConfig(**SMALL, history_columns=history, peer_columns=peer)
    run(raw, tmp_path, data)
    for found, expected in zip(labelled_rows(tmp_path), reference_rows(raw, data), strict=True):
        assert found == expected
        ids = {f"{family}_{name}" for family in ("history", "peer") for name in data.item_attributes}
        assert ids & found.keys() == kept


def test_a_feature_of_a_column_that_past_events_do_not_have_is_named() -> None:
    features = {"candidate_brand_id": {"table": "brand", "sequence": "candidate"}, "history_brand_id": {"table": "brand"}}
    tree = {"name": "x", "tables": {"brand": {"rows": 9, "dim": 4}}, "features": features}
    check_features(*(lambda config: (config.data, config.features))(validate_config(tree, "test")))
    config = validate_config({**tree, "data": {"history_columns": ["category_id"]}}, "test")
    with pytest.raises(ValueError, match="history_brand_id"):
        check_features(config.data, config.features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history_events": "carts", "labels": {"cart": {}}}, r"history_events: 'carts' is none of .*cart.*did you mean 'cart'"),
        ({"peer_events": "click"}, r"peer_events: 'click' is none of shown, clicked .*did you mean 'clicked'"),
        ({"history_columns": ["brand"]}, r"history_columns: 'brand' is no id of item_attributes or columns.items .*'brand_id'"),
        ({"peer_columns": ["brand_id", "brand_id"]}, r"peer_columns: 'brand_id' is there twice"),
        ({"history_columns": ["price"], "columns": {"items": {"price": "number"}}}, r"history_columns: 'price' is no id"),
    ],
)
def test_what_cannot_be_a_sequence_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)
