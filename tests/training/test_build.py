from pathlib import Path
from typing import Any

import pytest
from sample_files import write_counted_tokenizer
from small_run import small_config

from prectr_torchrec.models import build_model
from prectr_torchrec.system.errors import ConfigError


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_counted_tokenizer(tmp_path / "tokenizer")


def refused(tokenizer: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_model(small_config(**sections), tokenizer)
    return str(caught.value)


def test_peers_compared_with_other_features_than_the_history_are_refused(tokenizer: Path) -> None:
    features = {"peer_brand_id": {"table": "brand", "sequence": "peer"}}
    assert "model.parts.personal.peers: peer_* and history_* features must be compared" in refused(tokenizer, features=features)


def test_a_preference_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.parts\.personal: own and peers are both false"):
        small_config(model={"parts": {"personal": {"own": False, "peers": False}}})


@pytest.mark.parametrize("part", [{"interest": {}}, {"personal": {"peers": False}}], ids=str)
def test_features_of_events_that_no_part_reads_are_left_out(part: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("interest", "personal", "taste"))
    with_part, without = (small_config(model={"parts": parts}) for parts in ({**nothing, **part}, nothing))
    assert "history_item_id" in with_part.features and "peer_item_id" not in with_part.features
    assert "history_item_id" not in without.features


def test_peers_need_a_feature_and_the_historys_whoever_reads_it(tokenizer: Path) -> None:
    only_peers = {"taste": None, "personal": {"own": False, "incentive": "none"}}
    config = small_config(model={"parts": only_peers})
    del config.features["peer_item_id"]
    with pytest.raises(ConfigError, match=r"model\.parts\.personal\.peers: true needs at least one peer_\* feature"):
        build_model(config, tokenizer)
    features = {"peer_brand_id": {"table": "brand", "sequence": "peer"}}
    message = refused(tokenizer, features=features, model={"parts": only_peers})
    assert "peer_* and history_* features must be compared" in message


def test_own_preference_beside_peers_needs_past_items(tokenizer: Path) -> None:
    config = small_config(model={"parts": {"interest": None}})
    del config.features["history_item_id"]
    with pytest.raises(ConfigError, match=r"model\.parts\.personal\.own: beside peer_\* features it needs a history_\*"):
        build_model(config, tokenizer)


def test_a_fresh_encoder_is_not_kept_still(tokenizer: Path) -> None:
    assert refused(tokenizer, text={"frozen": True}).startswith("text.frozen: the encoder begins from nothing")
