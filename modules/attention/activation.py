"""DIN's activation unit: how much each event says of each candidate, request by request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

ActivationKind = Literal["dice", "prelu"]


class Dice(nn.Module):
    r"""Dice, the activation of DIN (arXiv 1706.06978): a PReLU that turns where the data are.

    Of an input :math:`s` of a channel, with the mean :math:`E` and the variance :math:`V` of the batch, in evaluation their
    moving averages, :math:`f(s) = p s + (1 - p) \alpha s` with :math:`p = \sigma((s - E) / \sqrt{V + \epsilon})` and a learned
    :math:`\alpha`. What is masked counts for neither. Ranks of a job keep the same averages, those of all their batches.

    Args:
        dim: channels.
        momentum: of the moving averages.
        epsilon: added to the variance.

    Example::

        dice = Dice(4)
        s = torch.randn(3, 5, 4)
        assert dice(s, torch.ones(3, 5, dtype=torch.bool)).shape == s.shape
    """

    def __init__(self, dim: int, *, momentum: float = 0.1, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, s: Tensor, mask: Tensor) -> Tensor:
        """The activation.

        Args:
            s: (..., dim) float.
            mask: (...) bool, where there is something.

        Returns:
            (..., dim) float.
        """
        mean, variance = self._moments(s, mask) if self.training else (self.mean, self.variance)
        scale = (variance + self.epsilon).rsqrt()
        p = torch.addcmul(-mean * scale, s, scale).sigmoid()
        return s * torch.addcmul(self.alpha, p, 1 - self.alpha)

    def _moments(self, s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight = s.flatten(0, -2), mask.flatten().to(s.dtype)
        count = weight.sum().clamp(min=1.0)
        mean = weight @ rows / count
        variance = (weight @ rows.square() / count - mean.square()).clamp(min=0.0)
        with torch.no_grad():
            found = torch.stack([mean, variance])
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(found)
                found /= dist.get_world_size()
            self.mean.lerp_(found[0], self.momentum)
            self.variance.lerp_(found[1], self.momentum)
        return mean, variance


class PReLU(nn.Module):
    r"""PReLU with a slope a channel: :math:`\max(0, s) + \alpha \min(0, s)`; takes the mask that `Dice` needs.

    Args:
        dim: channels.

    Example::

        assert PReLU(2)(torch.tensor([[1.0, -4.0]]), torch.ones(1, dtype=torch.bool)).tolist() == [[1.0, -1.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((dim,), 0.25))

    def forward(self, s: Tensor, mask: Tensor) -> Tensor:
        """Args: s: (..., dim); mask: not read. Returns: (..., dim)."""
        return torch.where(s > 0, s, self.alpha * s)


class ActivationUnit(nn.Module):
    r"""The activation unit of DIN (arXiv 1706.06978): a weight for each pair of candidate and event, not normalised.

    Let :math:`q` be a candidate's vector, :math:`k` an event's of the same width, and :math:`e` what else is known of the event.
    The weight is :math:`a(q, k, e) = \mathrm{MLP}([q; k; q - k; q \odot k; e])` with the published combination of both vectors,
    and one linear output. The first layer, of weights :math:`[W_q; W_k; W_d; W_p; W_e]`, splits into

    .. math:: q (W_q + W_d) + [k (W_k - W_d) + e W_e] + (q \odot k) W_p,

    a part of the candidate, computed once a candidate, one of the event, computed once a request, and one of the pair, so that
    only the last, :math:`k (q \odot W_p)`, costs anything a pair. The paper states the unit; this form of it is re-derived here.

    Args:
        dim: width of q and k.
        event_dim: width of e; may be 0.
        hidden: widths of the hidden layers.
        activation: after each of them, Dice or PReLU.

    Raises:
        ValueError: there is no hidden layer.

    Example::

        unit = ActivationUnit(8, 4, hidden=[36])
        q, k, e = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 4)  # R = 2, P = 3, L = 5
        weights = unit(q, k, e, lengths=torch.tensor([5, 0]))
        assert weights.shape == (2, 3, 5) and weights[1].eq(0).all()  # the second request has no history
    """

    def __init__(self, dim: int, event_dim: int, *, hidden: Sequence[int] = (36,), activation: ActivationKind = "dice") -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden: the activation unit needs one hidden layer at least")
        self.dims = (dim, dim, dim, dim, event_dim)
        self.first = nn.Linear(sum(self.dims), hidden[0])
        self.deeper = nn.ModuleList(nn.Linear(narrow, wide) for narrow, wide in zip(hidden, [*hidden[1:], 1], strict=True))
        self.activations = nn.ModuleList(Dice(width) if activation == "dice" else PReLU(width) for width in hidden)

    def forward(self, q: Tensor, k: Tensor, e: Tensor, lengths: Tensor, real: Tensor | None = None) -> Tensor:
        """The weights of all pairs of a request's candidates and events.

        Args:
            q: (R, P, dim) float, P candidate slots.
            k: (R, L, dim) float, left-aligned events.
            e: (R, L, event_dim) float.
            lengths: (R,) int64, real events; what lies beyond is not read.
            real: (R, P) bool, slots that hold a candidate, of which alone Dice learns where it turns; None: all.

        Returns:
            (R, P, L) float, zero for padding.
        """
        R, L, _ = k.shape
        mask = (torch.arange(L, device=k.device) < lengths.unsqueeze(1)).unsqueeze(2)  # (R, L, 1)
        w_q, w_k, w_d, w_p, w_e = self.first.weight.split(self.dims, dim=1)  # (H, dim) each
        of_candidate = nn.functional.linear(q, w_q + w_d, self.first.bias)  # (R, P, H)
        of_event = nn.functional.linear(k, w_k - w_d) + nn.functional.linear(e, w_e)  # (R, L, H)
        by_candidate = (q.unsqueeze(2) * w_p).flatten(1, 2)  # (R, P * H, dim)
        of_pair = (k @ by_candidate.transpose(1, 2)).view(R, L, q.shape[1], -1)  # (R, L, P, H)
        s = of_pair + of_candidate.unsqueeze(1) + of_event.unsqueeze(2)
        pairs = mask.expand(R, L, q.shape[1]) if real is None else mask & real.unsqueeze(1)
        for activation, layer in zip(self.activations, self.deeper, strict=True):
            s = layer(activation(s, pairs))
        return s.squeeze(3).masked_fill(~mask, 0.0).transpose(1, 2)
