"""The encoding of numbers: against its formula, at the ends, and where a number is missing or was never seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prectr_torchrec.modules import NumberColumn, NumberEncoding

PRICE = NumberColumn("candidate", "price", edges=[1.0, 2.0, 5.0, 9.0], bins=3)


def encoded(number: NumberColumn, *values: float, encoding: str = "bins") -> torch.Tensor:
    return NumberEncoding([number], encoding)(torch.tensor(values).unsqueeze(1))  # type: ignore[arg-type]


def test_golden_values() -> None:
    expected = [[0.5, 0, 0, 0], [1, 1 / 3, 0, 0], [1, 1, 0.75, 0]]
    torch.testing.assert_close(encoded(PRICE, 1.5, 3.0, 8.0), torch.tensor(expected))


def test_a_value_is_told_by_interpolation_between_the_edges() -> None:
    values = torch.rand(50) * 8 + 1
    bins = encoded(PRICE, *values.tolist())[:, :3].sum(1)
    np.testing.assert_allclose(bins, np.interp(values, [1, 2, 5, 9], [0, 1, 2, 3]), rtol=1e-5)


@pytest.mark.parametrize("encoding", ["bins", "standard"])
@pytest.mark.parametrize("transform", [False, True])
def test_beyond_what_was_seen_a_value_is_held(encoding: str, transform: bool) -> None:
    number = PRICE._replace(logarithmic=transform, mean=3.0, deviation=0.01)
    far = encoded(number, 1e30, -1e30, 1e29, -1e29, encoding=encoding)
    assert far.isfinite().all() and far[0].equal(far[2]) and far[1].equal(far[3]) and not far[0].equal(far[1])


def test_missing_is_a_flag_and_nothing_else() -> None:
    for encoding in ("bins", "standard"):
        features = encoded(PRICE, torch.nan, 3.0, encoding=encoding)
        assert features[0].tolist() == [0.0] * (features.shape[1] - 1) + [1.0] and features[1, -1] == 0


def test_a_number_that_was_never_there_or_never_changed_has_no_bins() -> None:
    assert encoded(PRICE._replace(edges=[]), 4.0).eq(0).all()
    assert encoded(PRICE._replace(edges=[3.0]), 2.0, 3.0, 4.0).eq(0).all()


def test_logarithms_keep_the_sign_and_are_taken_of_edges_too() -> None:
    number = NumberColumn("candidate", "change", logarithmic=True, edges=[-10.0, 0.0, 10.0], bins=2)
    features = encoded(number, -10.0, -3.0, 0.0, 3.0, 10.0)
    share = float(np.log(4) / np.log(11))
    torch.testing.assert_close(features[:, :2].sum(1), torch.tensor([0, 1 - share, 1, 1 + share, 2]))


def test_standardised_numbers_have_mean_and_deviation() -> None:
    number = PRICE._replace(mean=2.0, deviation=4.0)
    torch.testing.assert_close(encoded(number, 6.0, 0.0, encoding="standard")[:, 0], torch.tensor([1.0, -0.5]))


def test_numbers_with_fewer_bins_leave_the_rest_empty() -> None:
    encode = NumberEncoding([PRICE, NumberColumn("request", "hour", edges=[0.0, 24.0], bins=1)])
    assert encode.num_features == 8
    assert encode(torch.tensor([[9.0, 12.0]])).tolist() == [[1, 1, 1, 0.5, 0, 0, 0, 0]]


def test_what_is_not_known_when_it_is_built_comes_with_the_weights() -> None:
    empty = NumberEncoding([PRICE._replace(edges=None)])
    assert empty(torch.tensor([[3.0]]))[0, 0].isnan()
    empty.load_state_dict(NumberEncoding([PRICE]).state_dict())
    assert empty(torch.tensor([[3.0]])).equal(encoded(PRICE, 3.0))
