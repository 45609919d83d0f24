"""DIN's activation unit: how much each event says of each candidate, request by request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

ActivationKind = Literal["dice", "prelu"]
ROWS = 8192
"""That Dice goes through at a time on a CPU."""


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
        if not self.training:
            scale = (self.variance + self.epsilon).rsqrt()
            p = torch.addcmul(-self.mean * scale, s, scale).sigmoid()
            return s * torch.addcmul(self.alpha, p, 1 - self.alpha)
        f, mean, variance = _DiceOfBatch.apply(s.flatten(0, -2), mask.flatten(), self.alpha, self.epsilon)
        self._remember(torch.stack([mean, variance]))
        return f.view_as(s)

    @torch.no_grad()
    def _remember(self, moments: Tensor) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(moments)
            moments /= dist.get_world_size()
        self.mean.lerp_(moments[0], self.momentum)
        self.variance.lerp_(moments[1], self.momentum)


class _DiceOfBatch(torch.autograd.Function):
    """Dice by the moments of its rows (N, dim), which gradients flow through; of that size it keeps s alone.

    Returns f, mean and variance. It goes block by block of rows, so that what lies between s and f stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, mask: Tensor, alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        weight = mask.to(s.dtype)
        weight /= weight.sum().clamp(min=1.0)
        mean, variance = weight @ s, torch.zeros_like(alpha)
        for s_b, weight_b in _blocks(s, weight):
            variance += weight_b @ s_b.square()
        variance = (variance - mean.square()).clamp(min=0.0)
        scale, f = (variance + epsilon).rsqrt(), torch.empty_like(s)
        for s_b, f_b in _blocks(s, f):
            p = torch.addcmul(-mean * scale, s_b, scale, out=f_b).sigmoid_()
            torch.addcmul(alpha, p, 1 - alpha, out=f_b).mul_(s_b)
        ctx.save_for_backward(s, weight, alpha, mean, variance, scale)
        ctx.mark_non_differentiable(mean, variance)
        return f, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, Tensor, None]:
        s, weight, alpha, mean, variance, scale = ctx.saved_tensors
        d_s, slope = torch.empty_like(s), 1 - alpha
        d_alpha, d_z, d_z_s = torch.zeros(3, len(alpha), dtype=s.dtype, device=s.device)
        for s_b, grad_b, d_b in _blocks(s, grad, d_s):
            every = s_b.new_ones(len(s_b))
            p = torch.addcmul(-mean * scale, s_b, scale).sigmoid_()
            rows = grad_b * s_b
            d_alpha += every @ rows
            d_alpha -= every @ rows.mul_(p)
            rows.addcmul_(rows, p, value=-1.0)  # grad s p (1 - p)
            d_z += every @ rows
            torch.addcmul(alpha, p, slope, out=d_b).mul_(grad_b).addcmul_(rows, slope * scale)
            d_z_s += every @ rows.mul_(s_b)
        d_variance = -0.5 * scale**3 * slope * (d_z_s - mean * d_z) * (variance > 0)
        d_mean = -scale * slope * d_z - 2 * mean * d_variance
        for s_b, weight_b, d_b in _blocks(s, weight.unsqueeze(1), d_s):
            d_b.addcmul_(torch.addcmul(d_mean, s_b, 2 * d_variance), weight_b)
        return d_s, None, d_alpha, None


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same rows of each: few at a time on a CPU, all at once where operations are launched or compiled."""
    at_once = ROWS if tensors[0].is_cpu and not torch.compiler.is_compiling() else max(len(tensors[0]), 1)
    return zip(*(tensor.split(at_once) for tensor in tensors), strict=True)


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


class _Products(torch.autograd.Function):
    """q (R, dim, P) and w (dim, H) -> (R, dim, P, H); its gradients are one product each, with nothing of that size between."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(q, w)
        return q.unsqueeze(3) * w.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, w = ctx.saved_tensors
        return (grad @ w.unsqueeze(2)).squeeze(3), (q.unsqueeze(2) @ grad).sum(0).squeeze(1)


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
        by_candidate = _Products.apply(q.transpose(1, 2).contiguous(), w_p.t().contiguous()).flatten(2)  # (R, dim, P * H)
        rows = of_event.repeat(1, 1, q.shape[1]).add_(of_candidate.flatten(1).unsqueeze(1)).baddbmm_(k, by_candidate)
        s = rows.view(R, L, q.shape[1], -1)
        pairs = mask.expand(R, L, q.shape[1]) if real is None else mask & real.unsqueeze(1)
        for activation, layer in zip(self.activations, self.deeper, strict=True):
            s = layer(activation(s, pairs))
        return s.squeeze(3).masked_fill(~mask, 0.0).transpose(1, 2)
