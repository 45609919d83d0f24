from pathlib import Path
from typing import Any

import pytest
from sample_files import write_tokenizer
from small_run import small_config

from prectr_torchrec.config import ConfigError
from prectr_torchrec.text.build import build_match
from prectr_torchrec.text.tokenizer import write_document_frequency
from prectr_torchrec.training.build import build_prectr


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = write_tokenizer(tmp_path / "tokenizer")
    write_document_frequency(["red oaker", "red lamp"], folder)
    return folder


def refused(tokenizer: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_prectr(small_config(**sections), tokenizer)
    return str(caught.value)


def encoder(**settings: Any) -> dict[str, Any]:
    return {**small_config().text.encoder, **settings}


def test_unknown_encoder_key_names_the_nearest(tokenizer: Path) -> None:
    message = refused(tokenizer, text={"encoder": encoder(hiden_size=8)})
    assert message == "text.encoder.hiden_size: unknown to bert (did you mean 'hidden_size'?)"


def test_unknown_architecture_is_refused(tokenizer: Path) -> None:
    assert "text.encoder.model_type: 'brt' is no Hugging Face architecture" in refused(
        tokenizer, text={"encoder": encoder(model_type="brt")}
    )


def test_texts_longer_than_the_encoders_positions_are_refused(tokenizer: Path) -> None:
    assert "may be at most 4" in refused(tokenizer, text={"title_tokens": 8, "encoder": encoder(max_position_embeddings=4)})


def test_pretrained_encoder_with_another_vocabulary_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"lamp"', '"lump"'))
    assert "has another vocabulary" in refused(tokenizer, text={"path": str(other)})


def test_peers_compared_with_other_features_than_the_history_are_refused(tokenizer: Path) -> None:
    features = {"peer_brand_id": {"table": "brand", "sequence": "peer"}}
    assert "model.preference.peers: peer_* and history_* features must be compared" in refused(tokenizer, features=features)


def test_an_incentive_without_a_preference_is_refused(tokenizer: Path) -> None:
    message = refused(tokenizer, model={"preference": {"incentive": "shared"}})
    assert message.startswith("model.preference.incentive: needs model.preference.own or peers")


@pytest.mark.parametrize("part", ["interest", "preference.own"])
def test_features_of_events_that_no_part_reads_are_left_out(part: str) -> None:
    reading = {"interest": part == "interest", "preference": {"own": True} if part == "preference.own" else {}}
    with_part, without = small_config(model=reading), small_config(model={"interest": False, "preference": {}})
    assert "history_item_id" in with_part.features and "peer_item_id" not in with_part.features
    assert "history_item_id" not in without.features


def test_unknown_stemmer_names_the_nearest(tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Snowball language 'englsh' \(did you mean 'english'\?\)"):
        build_match(tokenizer, "englsh")


def test_stems_share_their_document_frequency(tokenizer: Path) -> None:
    stemmed, plain = build_match(tokenizer, "english"), build_match(tokenizer, None)
    assert (plain.stem == plain.stem.unique()).all()
    same = stemmed.stem == stemmed.stem[5]
    assert (stemmed.idf[same] == stemmed.idf[5]).all()
