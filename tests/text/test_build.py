"""The text side that a configuration asks for, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from sample_files import write_counted_tokenizer, write_tokenizer
from small_run import COLUMNS, small_config

from prectr_torchrec.data.tokenizer import write_document_frequency
from prectr_torchrec.data.tokens import TextTokenizer
from prectr_torchrec.modules import CrossInteraction, DualInteraction, LateInteraction, NgramEncoder, TextEncoder
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_match, build_relevance


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_counted_tokenizer(tmp_path / "tokenizer")


def refused(tokenizer: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_relevance(small_config(**sections), tokenizer)
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


def test_a_further_text_longer_than_the_encoders_positions_is_refused_where_it_is_encoded(tokenizer: Path) -> None:
    declared = {"columns": {**COLUMNS, "items": {**COLUMNS["items"], "details": {"text": {"tokens": 20}}}}}
    short = {"encoder": encoder(max_position_embeddings=16)}
    message = refused(tokenizer, text=short, data=declared, model={"parts": {"further_encodings": {}}})
    assert message.startswith("data.columns.items.details.text.tokens and text.query_tokens may be at most 16")
    build_relevance(small_config(text=short, data=declared, model={"parts": {"further_match": {}}}), tokenizer)


def test_pretrained_encoder_with_another_vocabulary_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"lamp"', '"lump"'), encoding="utf-8")
    assert "has another vocabulary" in refused(tokenizer, text={"path": str(other)})


def test_unknown_stemmer_names_the_nearest(tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Snowball language 'englsh' \(did you mean 'english'\?\)"):
        build_match(tokenizer, "englsh")


def test_stems_share_their_document_frequency(tokenizer: Path) -> None:
    stemmed, plain = build_match(tokenizer, "english"), build_match(tokenizer, None)
    assert (plain.stem == plain.stem.unique()).all()
    same = stemmed.stem == stemmed.stem[5]
    assert (stemmed.idf[same] == stemmed.idf[5]).all()


@pytest.mark.parametrize(("kind", "made"), [("dual", DualInteraction), ("late", LateInteraction), ("cross", CrossInteraction)])
def test_the_interaction_is_a_setting(tokenizer: Path, kind: str, made: type) -> None:
    assert isinstance(build_relevance(small_config(text={"interaction": kind}), tokenizer).interaction, made)


def test_an_encoder_of_ngrams_is_a_setting_and_reads_texts_apart(tokenizer: Path) -> None:
    ngrams = {"model_type": "ngram", "rows": 50, "hidden": [8]}
    relevance = build_relevance(small_config(text={"encoder": ngrams}), tokenizer)
    assert relevance.interaction is not None and isinstance(relevance.interaction.encoder, NgramEncoder)
    assert "reads texts apart: dual, not cross" in refused(tokenizer, text={"encoder": ngrams, "interaction": "cross"})
    message = refused(tokenizer, text={"encoder": {**ngrams, "row": 5}})
    assert message == "text.encoder.row: unknown to ngram (did you mean 'rows'?)"


def test_a_pair_longer_than_the_encoders_positions_is_refused(tokenizer: Path) -> None:
    text = {"title_tokens": 8, "query_tokens": 5, "interaction": "cross", "encoder": encoder(max_position_embeddings=13)}
    assert "may be at most 13 together, the encoder's positions; got 14" in refused(tokenizer, text=text)


def test_ids_of_a_vocabulary_may_have_gaps(tokenizer: Path) -> None:
    path = tokenizer / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = parts["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] += 40
    path.write_text(json.dumps(parts), encoding="utf-8")
    write_document_frequency([f"red {last.removeprefix('##')}", "red lamp"], tokenizer)
    rows = vocabulary[last] + 1
    assert len(TextTokenizer(tokenizer).vocabulary_rows(1000)) == rows
    assert len(build_match(tokenizer, "english").stem) == rows
    relevance = build_relevance(small_config(), tokenizer)
    assert relevance.interaction is not None and isinstance(relevance.interaction.encoder, TextEncoder)
    assert relevance.interaction.encoder.model.get_input_embeddings().num_embeddings == rows
