"""DCN: a cross network in front of the perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..parts.base import Part
from ..parts.position import Examination
from .dnn import DNN


class DCN(DNN):
    r"""`DNN` with TorchRec's low-rank cross network between its parts and its tower (DCN-V2, arXiv 2008.13535, stacked).

    With the features :math:`x_0` of all parts side by side, and of layer :math:`l` the weights :math:`W_l, V_l` of low rank and
    the bias :math:`b_l`, :math:`x_{l + 1} = x_0 \odot (W_l V_l x_l + b_l) + x_l`; the tower reads the last of them.

    Args:
        parts: what the tower reads, by name, in order.
        cross_layers: number of layers.
        tower: widths of its hidden layers.
        dropout: on the hidden layers.
        position: examination by position; None: the position has no part.
        labels: those beside the click -> what comes before each.

    Example::

        widths = Widths(request={"user_id": 8}, candidate={"item_id": 8}, sequences={})
        model = DCN({"features": LookedUpFeatures(widths)}, cross_layers=2, tower=[32, 16])
        inputs = Inputs(
            {"user_id": torch.randn(1, 8)}, {"item_id": torch.randn(2, 8)}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        assert model(inputs).ranking["click"].logit.shape == (2,)
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        cross_layers: int = 2,
        tower: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        position: Examination | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(parts, tower=tower, cross_layers=cross_layers, dropout=dropout, position=position, labels=labels)
