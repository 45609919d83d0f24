import math
from pathlib import Path

import pytest
import torch
from text_modules import encoder, match

from prectr_torchrec.modules import DualInteraction, Relevance, TextEncoder, TextMatch, TextRelevance

NAMES = """coverage met missed rarest_met rarest_missed commonest_met commonest_missed last last_weight rarest numbers has_number
number_missed pairs first_place last_place span title_coverage share all hits misses query_length title_length""".split()


def features(query: list[int], title: list[int], stem: torch.Tensor | None = None) -> dict[str, float]:
    module = match() if stem is None else TextMatch(match().idf, match().is_number, stem)
    return dict(zip(NAMES, module(torch.tensor([query]), torch.tensor([title]))[0].tolist(), strict=True))


def test_padding_does_not_change_a_text_vector() -> None:
    short = torch.tensor([[2, 7, 8, 0]])
    torch.testing.assert_close(encoder()(short), encoder()(torch.nn.functional.pad(short, (0, 6))))


def test_other_texts_of_the_batch_do_not_change_a_text_vector() -> None:
    texts = torch.tensor([[2, 7, 8, 0, 0], [2, 9, 10, 11, 12]])
    torch.testing.assert_close(encoder()(texts)[:1], encoder()(texts[:1]))


def test_a_text_without_tokens_is_zero() -> None:
    assert encoder()(torch.zeros(2, 4, dtype=torch.long)).eq(0).all()


def test_every_encoder_parameter_is_trained() -> None:
    model = encoder().train()
    model(torch.tensor([[2, 7, 8], [2, 9, 0]])).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_encoder_loads_what_hugging_face_saved(tmp_path: Path) -> None:
    model = encoder()
    model.model.save_pretrained(tmp_path)
    texts = torch.tensor([[2, 7, 8, 0]])
    torch.testing.assert_close(TextEncoder.from_pretrained(str(tmp_path)).eval()(texts), model(texts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_encoder_saved_in_half_precision_is_trained_in_full(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder().model.to(dtype).save_pretrained(tmp_path)
    assert {weights.dtype for weights in TextEncoder.from_pretrained(str(tmp_path)).parameters()} == {torch.float32}


def test_an_encoder_that_is_kept_still_has_no_dropout() -> None:
    model, texts = encoder(hidden_dropout_prob=0.5), torch.tensor([[2, 7, 8, 9]])
    assert not torch.equal(model.train()(texts), model(texts))
    model.requires_grad_(False)
    assert torch.equal(model.train()(texts), model.eval()(texts))


def test_bf16_is_for_training_alone() -> None:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    exact, half = encoder(**still), encoder(**still, precision="bf16")
    half.load_state_dict(exact.state_dict())
    texts = torch.tensor([[2, 7, 8, 0], [2, 9, 10, 11]])
    torch.testing.assert_close(half(texts), exact(texts), atol=1e-5, rtol=1e-5)
    trained, reference = half.train()(texts), exact.train()(texts)
    assert trained.dtype == torch.float32 and (trained - reference).abs().max() > 1e-4
    torch.testing.assert_close(trained, reference, atol=0.03, rtol=0.03)
    trained.square().sum().backward()
    reference.square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (half, exact)]
    assert torch.linalg.norm(gradients[0] - gradients[1]) < 0.05 * torch.linalg.norm(gradients[1])


def test_match_of_a_covered_query() -> None:
    f = features([2, 10, 30, 0], [2, 11, 10, 30, 12, 0])
    assert f["coverage"] == f["share"] == f["pairs"] == f["last"] == f["rarest"] == f["all"] == 1.0
    assert f["title_coverage"] == pytest.approx(8 / 12)
    assert f["met"] == pytest.approx(8 / 20) and f["missed"] == 0.0
    assert f["query_length"] == pytest.approx(math.log(3)) and f["title_length"] == pytest.approx(math.log(5))


def test_match_weighs_rare_tokens_more() -> None:
    f = features([2, 10, 30], [2, 10, 11])
    assert f["coverage"] == pytest.approx(2 / 8) and f["share"] == 0.5
    assert f["rarest"] == f["last"] == f["all"] == f["pairs"] == 0.0


def test_match_of_numbers() -> None:
    f = features([2, 41, 42], [2, 42, 5])
    assert f["has_number"] == f["number_missed"] == 1.0 and f["numbers"] == 0.5
    assert features([2, 41], [2, 41])["number_missed"] == 0.0


def test_tokens_in_another_order_match_without_pairs() -> None:
    f = features([2, 10, 30], [2, 30, 10])
    assert f["share"] == 1.0 and f["pairs"] == 0.0


def test_tokens_of_one_stem_match() -> None:
    stem = torch.arange(50)
    stem[11] = 10
    assert features([2, 11], [2, 10], stem)["share"] == 1.0
    assert features([2, 11], [2, 10])["share"] == 0.0


def test_places_are_shares_of_the_titles_own_length() -> None:
    f = features([2, 10, 30], [2, 11, 10, 12, 30, 0, 0, 0])
    assert (f["first_place"], f["last_place"], f["span"]) == pytest.approx((2 / 5, 4 / 5, 2 / 5))
    assert features([2, 10], [2, 11])["first_place"] == 1.0


def test_match_of_a_pair_does_not_depend_on_its_batch() -> None:
    queries, titles = torch.tensor([[2, 10, 30, 41], [2, 10, 0, 0]]), torch.tensor([[2, 10, 11, 12, 41], [2, 10, 5, 0, 0]])
    torch.testing.assert_close(match()(queries, titles)[1:], match()(queries[1:, :2], titles[1:, :3]))


def test_empty_texts_give_finite_features_without_a_match() -> None:
    for query, title in (([0, 0], [0, 0]), ([2, 0], [2, 10]), ([2, 10], [2, 0])):
        f = features(query, title)
        assert all(math.isfinite(v) for v in f.values())
        assert f["coverage"] == f["all"] == f["last"] == 0.0


def test_special_tokens_never_match() -> None:
    assert features([2, 10], [2, 11])["share"] == 0.0


def predict(model: TextRelevance, queries: torch.Tensor, titles: torch.Tensor) -> Relevance:
    return model(model.pair(model.encode(queries), model.encode(titles)), model.match_features(queries, titles))


def test_relevance_depends_on_the_pair_alone() -> None:
    relevance = TextRelevance(DualInteraction(encoder()), match(), [8], 4).eval()
    queries, titles = torch.tensor([[2, 10, 0], [2, 30, 41]]), torch.tensor([[2, 10, 30, 0], [2, 30, 41, 42]])
    both, one = predict(relevance, queries, titles), predict(relevance, queries[:1], titles[:1])
    torch.testing.assert_close(both.log_pi[:1], one.log_pi)
    torch.testing.assert_close(both.log_pi.exp().sum(1), torch.ones(2))
    assert both.hidden.shape == (2, 8)


def test_relevance_without_the_encoder_or_without_match_features() -> None:
    tokens = torch.tensor([[2, 10, 30]])
    for model in (TextRelevance(None, match(), [8], 4), TextRelevance(DualInteraction(encoder()), None, [8], 4)):
        assert predict(model, tokens, tokens).log_pi.shape == (1, 4)


def test_relevance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="text encoder, the match features, or both"):
        TextRelevance(None, None, [8], 4)
