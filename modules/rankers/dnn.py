"""DNN: an embedding and multilayer perceptron ranker, the base of those that add one thing to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..parts.base import Part
from ..parts.position import Examination
from .parted import TowerRanker
from .towers import ClickTower


class DNN(TowerRanker):
    r"""The click probability from the features of parts, by a multilayer perceptron.

    The embedding and MLP paradigm, as arXiv 1706.06978 calls what it compares with. Let :math:`f_m(x)` be the features of the
    m-th part of a candidate :math:`x`, :math:`s_m(x)` its shift where it has one, and :math:`\epsilon_p` the examination of the
    position p that was logged. Then

    .. math:: z = \mathrm{Tower}([f_1(x); f_2(x); ...]) + \sum_m s_m(x), \quad P(y = 1 | x, p) = \epsilon_p \, \sigma(z),

    and what ranks is :math:`\sigma(z)`. There is no relevance tower: its parts read no `TextReading`. Labels that follow
    the click have layers of their own on the same features, and their probabilities are a chain, as of `label_chain`.

    Args:
        parts: what the tower reads, by name, in order.
        tower: widths of its hidden layers.
        cross_layers: layers of a cross network before them.
        dropout: on the hidden layers.
        position: examination by position; None: the position has no part.
        labels: those beside the click -> what comes before each.

    Example::

        widths = Widths(request={"user_id": 8}, candidate={"item_id": 8}, sequences={})
        model = DNN({"features": LookedUpFeatures(widths)}, tower=[32, 16], position=Examination(10))
        inputs = Inputs(  # R = 2 requests with 2 candidates and 1
            request={"user_id": torch.randn(2, 8)},
            candidate={"item_id": torch.randn(3, 8), "position": torch.tensor([1, 2, 1])},
            sequences={},
            texts={},
            request_weight=torch.ones(2),
            candidate_request=torch.tensor([0, 0, 1]),
            candidate_weight=torch.ones(3),
        )
        assert model(inputs).ranking["click"].logit.shape == (3,)
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        tower: Sequence[int] = (256, 128),
        cross_layers: int = 0,
        dropout: float = 0.0,
        position: Examination | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(parts, position=position, labels=labels)
        self.tower = ClickTower(self.num_features, list(tower), 1, cross_layers=cross_layers, dropout=dropout, labels=self.after)
