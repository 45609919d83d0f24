from pathlib import Path
from typing import Any

import pytest
from sample_files import write_tokenizer
from small_run import small_config

from prectr_torchrec.config import ConfigError
from prectr_torchrec.text.tokenizer import write_document_frequency
from prectr_torchrec.training.build import build_match, build_prectr


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


def test_feature_that_nothing_reads_is_refused(tokenizer: Path) -> None:
    features = {"peer_item_id": {"table": "item", "sequence": "peer"}}
    assert "features.peer_item_id: nothing in this model reads it" in refused(tokenizer, features=features)


def test_unknown_stemmer_names_the_nearest(tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Snowball language 'englsh' \(did you mean 'english'\?\)"):
        build_match(tokenizer, "englsh")


def test_stems_share_their_document_frequency(tokenizer: Path) -> None:
    stemmed, plain = build_match(tokenizer, "english"), build_match(tokenizer, None)
    assert (plain.stem == plain.stem.unique()).all()
    same = stemmed.stem == stemmed.stem[5]
    assert (stemmed.idf[same] == stemmed.idf[5]).all()
