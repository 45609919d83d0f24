"""LightGBM on the features of candidates: which objective, how many trees, which settings, and the chance of a click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import lightgbm
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize

from prectr_torchrec.baselines.samples import BaselineConfig
from prectr_torchrec.data.prepare.examination import weights_at

Objective = Literal["binary", "lambdarank"]
_GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.02, 0.05, 0.1),
    "num_leaves": (7, 15, 31, 63),
    "min_data_in_leaf": (20, 50, 100, 200, 500),
    "feature_fraction": (0.3, 0.5, 0.8),
    "bagging_fraction": (0.6, 0.8, 1.0),
    "lambda_l2": (0.0, 1.0, 10.0),
}
"""What trials after the first draw from."""


class BoostingConfig(BaselineConfig):
    """Settings of the boosted trees."""

    objective: Objective = "binary"
    """`binary`: the log loss of clicks, with the position as a feature. `lambdarank`: LambdaMART within a request, its gains
    freed from positions as of LightGBM's `position` (arXiv 1804.05938)."""
    trials: int = Field(1, ge=1)
    """How many settings are tried; the validation split chooses. The first are those given here, the others are drawn."""
    rounds: int = Field(2000, ge=1)
    """Trees at most."""
    patience: int = Field(50, ge=1)
    """Trees after which fitting stops where the validation loss has not improved."""
    learning_rate: float = Field(0.05, gt=0)
    num_leaves: int = Field(31, ge=2)
    min_data_in_leaf: int = Field(100, ge=1)
    feature_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the features that each tree draws."""
    bagging_fraction: float = Field(0.8, gt=0, le=1)
    """Share of the rows that each tree draws."""
    lambda_l2: float = Field(0.0, ge=0)


@dataclass(frozen=True)
class Part:
    """n labelled candidates.

    Attributes:
        features: (n, F); `position` is the first.
        clicks: (n,) 0 or 1.
        sizes: (R,) candidates of each request, in their order.
    """

    features: NDArray[np.float32]
    clicks: NDArray[np.int8]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clicks)

    def split(self, share: float) -> tuple[Part, Part]:
        """All but the latest requests, and these, about `share` of the rows and at least one request."""
        ends = np.cumsum(self.sizes)
        requests = min(int(np.searchsorted(ends, len(self) * (1 - share))), len(ends) - 1)
        cut = int(ends[requests - 1]) if requests else 0
        return (
            Part(self.features[:cut], self.clicks[:cut], self.sizes[:requests]),
            Part(self.features[cut:], self.clicks[cut:], self.sizes[requests:]),
        )


def join(parts: list[Part]) -> Part:
    """One after the other."""
    features, clicks, sizes = (np.concatenate([getattr(p, name) for p in parts]) for name in ("features", "clicks", "sizes"))
    return Part(features, clicks, sizes)


class Boosting:
    """Fitted trees, and the line from their score to the logit of a click.

    The number of trees and, of several trials, the settings are those with the best score on `choosing`.

    Args:
        fitted: what is fitted.
        choosing: what chooses.
        names: of the features.
        categories: those that are categories.
        examination: (P,) as of `position_weights`.
        config: how.
        refit: whether the chosen settings are fitted to both parts in the end.
    """

    def __init__(
        self,
        fitted: Part,
        choosing: Part,
        *,
        names: list[str],
        categories: list[str],
        examination: NDArray[np.float64],
        config: BoostingConfig,
        refit: bool,
    ) -> None:
        self._names, self._categories, self._ranks = names, categories, config.objective == "lambdarank"
        self._examination = examination
        found = [self._fit(fitted, settings, config, choosing) for settings in _trials(config)]
        better = max if self._ranks else min
        self.settings, booster, self.score = better(found, key=lambda trial: trial[2])
        """The chosen settings, and their score on `choosing`: NDCG@10, or log loss."""
        self.line = self._line(booster, choosing) if self._ranks else (0.0, 1.0, 0.0)
        if refit:
            booster = self._fit(join([fitted, choosing]), self.settings, config, None, booster.best_iteration)[1]
        self.booster = booster

    def logits(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n,) logits of a click at position 1, and at the position of the features."""
        if self._ranks:
            offset, slope, looked_at = self.line
            at_reference = offset + slope * self._raw(self.booster, features)
            return at_reference, at_reference + looked_at * self._log_examination(features)
        logged = self._raw(self.booster, features)
        reference = features.copy()
        reference[:, 0] = 1
        return self._raw(self.booster, reference), logged

    def _raw(self, booster: lightgbm.Booster, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(booster.predict(self._seen(features), raw_score=True), dtype=np.float64)

    def _seen(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features[:, 1:] if self._ranks else features

    def _log_examination(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.log(weights_at(self._examination, features[:, 0].astype(np.int64)))

    def _dataset(self, part: Part, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        ranked = {"group": part.sizes, "position": part.features[:, 0].astype(np.int32)} if self._ranks else {}
        names = self._names[1:] if self._ranks else self._names
        options: dict[str, Any] = {"feature_name": names, "categorical_feature": self._categories, **ranked}
        return lightgbm.Dataset(self._seen(part.features), part.clicks, reference=reference, **options)

    def _fit(
        self, part: Part, settings: dict[str, Any], config: BoostingConfig, choosing: Part | None, rounds: int | None = None
    ) -> tuple[dict[str, Any], lightgbm.Booster, float]:
        """Settings, trees, and their score on what chooses."""
        metric = "ndcg" if self._ranks else "binary_logloss"
        parameters: dict[str, Any] = {
            "objective": config.objective,
            "metric": metric,
            "eval_at": [10],
            "bagging_freq": 1,
            "seed": config.seed,
            "deterministic": True,
            "verbosity": -1,
            **settings,
        }
        data = self._dataset(part)
        if choosing is None:
            return settings, lightgbm.train(parameters, data, rounds or config.rounds), 0.0
        stopping = lightgbm.early_stopping(config.patience, verbose=False)
        booster = lightgbm.train(
            parameters, data, config.rounds, valid_sets=[self._dataset(choosing, data)], callbacks=[stopping]
        )
        return settings, booster, next(iter(booster.best_score["valid_0"].values()))

    def _line(self, booster: lightgbm.Booster, part: Part) -> tuple[float, float, float]:
        """Offset, slope of the score and slope of log examination of the clicks' logistic regression; a score has no scale."""
        columns = np.stack([np.ones(len(part)), self._raw(booster, part.features), self._log_examination(part.features)], axis=1)
        clicks = part.clicks.astype(np.float64)

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logit = columns @ weights
            slope = 1 / (1 + np.exp(-logit)) - clicks
            return float(np.logaddexp(0, logit).sum() - clicks @ logit), columns.T @ slope

        offset, slope, looked_at = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B").x
        return float(offset), float(slope), float(looked_at)


def _trials(config: BoostingConfig) -> list[dict[str, Any]]:
    given = {name: getattr(config, name) for name in _GRID}
    rng = np.random.default_rng(config.seed)
    return [given, *({name: rng.choice(values).item() for name, values in _GRID.items()} for _ in range(config.trials - 1))]
