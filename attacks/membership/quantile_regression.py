"""Membership without shadows: is the target surer of an example than of public examples that look like it?

A regression of the target's own scaled confidence on public pictures and their labels says what a non-member like this
one would get, and by how much that varies (Bertran et al. 2023, "Scalable Membership Inference Attacks via Quantile
Regression"). The paper trains a network; here it is scikit-learn's boosted trees on coarse pixels, image statistics and
the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import cross_val_predict

from attacks.base import Floats, Ints, MembershipKnowledge, require_target
from attacks.membership.observed import Signals
from attacks.membership.picture_features import shrunk, statistics
from fl_core.errors import InputError, check_choice, check_number

Array = NDArray[np.float64]

SIDE = 4
"""Pixels a way of the coarse picture that the trees see."""
MOST_CATEGORIES = 255
"""More classes than this are not told to the trees: scikit-learn's limit."""
FOLDS = 3
LEAST_SCALE = 1e-3
"""Nats: a spread found smaller than this is taken as this, lest a few chance agreements make anybody a member."""


@dataclass(frozen=True, kw_only=True)
class QuantileRegression:
    """The target's scaled confidence over what the regression expects, in units of its spread there.

    With `method` "gaussian" they are a mean and a standard deviation, the latter from a second regression, of the
    logarithm of squared residuals out of fold; the score is a z-value. With "quantile" they are the median and the
    distance from it to the quantile `level`, so that the paper's verdict at a false-positive rate of 1 − `level` is
    score ≥ 1. At most `max_rows` public examples are used, drawn with `seed`, and no fewer than `min_rows`.
    """

    method: Literal["gaussian", "quantile"] = "gaussian"
    level: float = 0.95
    max_rows: int = 4000
    min_rows: int = 50
    iterations: int = 60
    seed: int = 0
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_choice("quantile regression's method", self.method, ("gaussian", "quantile"))
        check_number("quantile regression's level", self.level, above=0.5, below=1)
        check_number("quantile regression's min_rows", self.min_rows, minimum=2 * FOLDS, integer=True)
        check_number("quantile regression's max_rows", self.max_rows, minimum=self.min_rows, integer=True)
        check_number("quantile regression's iterations", self.iterations, minimum=1, integer=True)

    @property
    def name(self) -> str:
        """What tables call it: with the distribution, where that is assumed."""
        return "quantile regression" if self.method == "quantile" else "quantile regression, Gaussian"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> Array:
        """Scores [examples]. Raises InputError without pictures, enough public examples, or finite logits."""
        require_target(self.name, signals)
        images, public = knowledge.images, knowledge.public_images
        if images is None or public is None or signals.public_labels is None:
            raise InputError(f"{self.name} needs the candidates' pictures and labelled public ones; set attack.public")
        seen, labels = signals.public_confidence[0], signals.public_labels
        if len(public) != len(seen) or len(images) != len(signals.labels):
            raise InputError(
                f"{len(images)} pictures of {len(signals.labels)} candidates and {len(public)} public pictures for "
                f"{len(seen)} public signals do not fit; give one picture a signal, in the same order"
            )
        if len(seen) < self.min_rows:
            raise InputError(f"{self.name} needs at least {self.min_rows} public examples, has {len(seen)}")
        rows = np.arange(len(seen))
        if len(rows) > self.max_rows:
            rows = np.sort(np.random.default_rng(self.seed).choice(len(rows), self.max_rows, replace=False))
        classes = signals.logits.shape[-1]
        known = _features(public[rows], labels[rows], classes)
        asked = _features(images, signals.labels, classes)
        fit = self._gaussian if self.method == "gaussian" else self._quantiles
        expected, spread = fit(known, seen[rows], asked, classes)
        scores: Array = (signals.confidence[0, 0] - expected) / np.maximum(spread, LEAST_SCALE)
        return scores

    def _gaussian(self, known: Floats, seen: Array, asked: Floats, classes: int) -> tuple[Array, Array]:
        mean = self._trees(classes)
        # In fold the trees have seen the answer, and their residuals would be too small.
        residual = seen - cross_val_predict(mean, known, seen, cv=FOLDS)
        logs = np.log(np.maximum(residual**2, LEAST_SCALE**2))
        squares = self._trees(classes).fit(known, logs)
        # A mean of logarithms lies below the logarithm of the mean, by the same factor everywhere.
        factor = np.sqrt(np.mean(residual**2) / np.exp(squares.predict(known)).mean())
        return mean.fit(known, seen).predict(asked), factor * np.exp(squares.predict(asked) / 2)

    def _quantiles(self, known: Floats, seen: Array, asked: Floats, classes: int) -> tuple[Array, Array]:
        middle, high = (
            self._trees(classes, loss="quantile", quantile=level).fit(known, seen).predict(asked)
            for level in (0.5, self.level)
        )
        return middle, high - middle

    def _trees(self, classes: int, **options: Any) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            max_iter=self.iterations,
            min_samples_leaf=20,
            categorical_features=[0] if classes <= MOST_CATEGORIES else None,
            random_state=self.seed,
            **options,
        )


def _features(images: Floats, labels: Ints, classes: int) -> NDArray[np.float32]:
    """The label, coarse pixels and statistics [images, features]."""
    label = labels if classes <= MOST_CATEGORIES else np.zeros_like(labels)
    return np.column_stack([label.astype(np.float32), shrunk(images, SIDE), statistics(images)])
