"""Target attention over a request's events, for all of its candidates at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TargetAttention(nn.Module):
    r"""Masked multi-head target attention with a learned slot for "nothing fits".

    Let :math:`x` be a target (a candidate), :math:`k_j` and :math:`v_j` the key and the value of event :math:`j = 1..n`, and
    :math:`W_q, W_k, W_v` the projections of one head to its width :math:`d` = `dim / num_heads`. A head gives

    .. math:: \sum_{j = 0}^n a_j u_j, \quad a = \mathrm{softmax}_{j = 0..n}(W_q x \cdot h_j / \sqrt d), \quad
        h_j = W_k k_j, \; u_j = W_v v_j \text{ for } j \geq 1,

    and the heads stand side by side. Slot 0 has a learned key :math:`h_0` and value :math:`u_0`, both zero at the start: a
    target that fits no event leans on them, and an empty history returns :math:`u_0`, the prior, and never NaN.

    The attention is that of arXiv 1706.03762 with a candidate for its query, as in arXiv 1706.06978 (whose weights are not
    normalised); slot 0 is re-derived here. Keys and values are projected once a request, then shared by its P candidates.

    Args:
        target_dim: width of a target.
        key_dim: width of an event's key.
        value_dim: width of an event's value.
        dim: width of the output, divided among the heads.
        num_heads: heads.

    Raises:
        ValueError: `dim` does not divide among the heads.

    Example::

        attention = TargetAttention(6, 5, 4, dim=8, num_heads=2)
        target = torch.randn(2, 3, 6)  # R = 2 requests of P = 3 candidates
        key, value = torch.randn(2, 7, 5), torch.randn(2, 7, 4)  # L = 7 events
        out = attention(target, key, value, lengths=torch.tensor([7, 0]))
        assert out.shape == (2, 3, 8)
        assert torch.allclose(out[1], attention.prior_value.expand(3, 8))  # the second request has no history
    """

    offsets = ("prior_key", "prior_value")

    def __init__(self, target_dim: int, key_dim: int, value_dim: int, *, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.target = nn.Linear(target_dim, dim)
        self.key = nn.Linear(key_dim, dim)
        self.value = nn.Linear(value_dim, dim)
        self.prior_key = nn.Parameter(torch.zeros(dim))
        self.prior_value = nn.Parameter(torch.zeros(dim))

    def forward(self, target: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """Attends from every candidate of a request to the request's events.

        Args:
            target: (R, P, target_dim) float, P candidate slots per request.
            key: (R, L, key_dim) float, left-aligned events.
            value: (R, L, value_dim) float.
            lengths: (R,) int64, real events; what lies beyond is not read.

        Returns:
            (R, P, dim) float.
        """
        R, P, _ = target.shape
        q_RHPD, k_RHLD, mask_R11L = self._queries_and_keys(target, key, lengths)
        v_RHLD = self._heads(torch.cat([self.prior_value.expand(R, 1, -1), self.value(value)], dim=1))
        attended = F.scaled_dot_product_attention(q_RHPD, k_RHLD, v_RHLD, attn_mask=mask_R11L)
        return attended.transpose(1, 2).reshape(R, P, -1)

    def weights(self, target: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
        """The weights behind `forward`, which its fused kernel does not tell.

        Args:
            target: (R, P, target_dim) float.
            key: (R, L, key_dim) float.
            lengths: (R,) int64, real events.

        Returns:
            (R, H, P, L + 1) float, by head; slot 0 is the prior, slot j + 1 the event j, zero for padding.
        """
        q_RHPD, k_RHLD, mask_R11L = self._queries_and_keys(target, key, lengths)
        scores = q_RHPD @ k_RHLD.transpose(2, 3) / k_RHLD.shape[3] ** 0.5
        return scores.masked_fill(~mask_R11L, -torch.inf).softmax(3)

    def _queries_and_keys(self, target: Tensor, key: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, H, P, D), keys with the prior's in front (R, H, L + 1, D), and the mask (R, 1, 1, L + 1)."""
        R, L, _ = key.shape
        queries = self._heads(self.target(target))
        keys = self._heads(torch.cat([self.prior_key.expand(R, 1, -1), self.key(key)], dim=1))
        mask_RL = torch.arange(L + 1, device=lengths.device) <= lengths.unsqueeze(1)  # slot 0 is the prior
        return queries, keys, mask_RL[:, None, None, :]

    def _heads(self, x: Tensor) -> Tensor:
        """(R, N, dim) -> (R, H, N, dim / H)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
