"""The encoding of vectors: against its formula, at the ends, and where a vector is missing."""

from __future__ import annotations

import pytest
import torch

from prectr_torchrec.modules import VectorColumn, VectorEncoding

IMAGE = VectorColumn("candidate", "image", width=3, mean=[1.0, 0.0, -1.0], deviation=[2.0, 1.0, 0.5])


def test_golden_values() -> None:
    encode = VectorEncoding(IMAGE, dim=2)
    encode.project.weight.data = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    features = encode(torch.tensor([[3.0, 1.0, -0.5], [1.0, -2.0, -1.0]]))
    torch.testing.assert_close(features, torch.tensor([[6.0, 1.0, 0.0], [-4.0, -2.0, 0.0]]))


def test_a_missing_vector_is_a_flag_and_nothing_else_and_gives_no_gradient() -> None:
    encode = VectorEncoding(IMAGE, dim=4)
    features = encode(torch.tensor([[torch.nan] * 3, [1.0, 2.0, 3.0]]))
    assert features[0].tolist() == [0.0] * 4 + [1.0] and features[1, -1] == 0
    encode(torch.full((2, 3), torch.nan)).sum().backward()
    assert encode.project.weight.grad is not None and encode.project.weight.grad.eq(0).all()


def test_beyond_what_was_seen_a_number_is_held() -> None:
    encode = VectorEncoding(IMAGE, dim=4)
    far, farther = encode(torch.tensor([[1e29, -1e29, 1e29], [1e30, -1e30, 1e30]]))
    assert far.isfinite().all() and far.equal(farther)


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_may_be_empty_or_of_one(rows: int) -> None:
    assert VectorEncoding(IMAGE, dim=4)(torch.randn(rows, 3)).shape == (rows, 5)


def test_what_is_not_known_when_it_is_built_comes_with_the_weights() -> None:
    known, empty = VectorEncoding(IMAGE, dim=2), VectorEncoding(VectorColumn("candidate", "image", width=3), dim=2)
    row = torch.tensor([[3.0, 1.0, 2.0]])
    assert empty(row)[0, 0].isnan()
    empty.load_state_dict(known.state_dict())
    assert empty(row).equal(known(row))
