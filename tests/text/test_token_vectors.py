from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel

from prectr_torchrec.data.tokenizer import load_tokenizer, train_tokenizer
from prectr_torchrec.modules import TextEncoder
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.token_vectors import principal_components, read_alone, start_from_token_vectors

TEXTS = ["oak lamp", "white lamps and oaken tables", "steel table", "white floor"]
SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 32}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A larger encoder, which knows "oak" and "steel" as one word."""
    folder = tmp_path / "source"
    train_tokenizer(TEXTS, folder, 200)
    vocabulary = load_tokenizer(folder)
    torch.manual_seed(1)
    encoder = BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=12, initializer_range=0.5, **SHAPE)).eval()
    table = encoder.get_input_embeddings().weight.data
    table[vocabulary.convert_tokens_to_ids("steel")] = table[vocabulary.convert_tokens_to_ids("oak")]
    encoder.save_pretrained(folder)
    return folder


def started(tmp_path: Path, source: Path, width: int) -> tuple[Tensor, Tensor, list[str]]:
    """The token vectors of a student, drawn and started from the source, and its tokens."""
    tokenizer = tmp_path / "tokenizer"
    train_tokenizer(TEXTS[::-1], tokenizer, 100)
    vocabulary = load_tokenizer(tokenizer)
    student = TextEncoder.from_config(model_type="bert", vocab_size=len(vocabulary), hidden_size=width, **SHAPE)
    drawn = student.model.get_input_embeddings().weight.detach().clone()
    start_from_token_vectors(student, tokenizer, source)
    return drawn, student.model.get_input_embeddings().weight.detach(), vocabulary.convert_ids_to_tokens(range(len(vocabulary)))


def test_words_that_the_source_takes_for_one_start_alike_and_special_tokens_as_drawn(tmp_path: Path, source: Path) -> None:
    drawn, vectors, tokens = started(tmp_path, source, 8)
    oak, steel, white = (vectors[tokens.index(word)] for word in ("oak", "steel", "white"))
    torch.testing.assert_close(oak, steel)
    assert (oak - white).norm() > 0.5 * oak.norm()
    assert torch.equal(vectors[:5], drawn[:5])
    torch.testing.assert_close(vectors[5:].std(), drawn[5:].std())


def test_at_the_source_s_width_distances_between_words_are_the_source_s(tmp_path: Path, source: Path) -> None:
    _, vectors, tokens = started(tmp_path, source, 12)
    words = ["oak", "white", "lamp", "table"]
    ours = torch.pdist(vectors[[tokens.index(word) for word in words]])
    theirs = torch.pdist(read_alone(source, words))
    torch.testing.assert_close(ours / ours.sum(), theirs / theirs.sum())


def test_components_are_those_of_largest_variance() -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    hidden = torch.randn(500, 3) * torch.tensor([3.0, 1.0, 0.01])
    found = principal_components(hidden @ rotation + 7, 2)
    torch.testing.assert_close(found.var(0), hidden.var(0)[:2], rtol=0.05, atol=0.0)


def test_a_source_that_is_too_narrow_or_no_encoder_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConfigError, match="12 wide, the student 16"):
        started(tmp_path, source, 16)
    with pytest.raises(ConfigError, match="no Hugging Face encoder"):
        started(tmp_path, tmp_path / "nothing", 8)


def test_a_source_in_half_precision_is_read_in_full(tmp_path: Path, source: Path) -> None:
    whole = read_alone(source, ["oak"])
    AutoModel.from_pretrained(source).half().save_pretrained(source)
    drawn, vectors, _ = started(tmp_path, source, 8)
    assert vectors.dtype == torch.float32 and not torch.equal(vectors, drawn)
    torch.testing.assert_close(read_alone(source, ["oak"]), whole, atol=1e-2, rtol=1e-2)
