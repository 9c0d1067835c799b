"""Shadow-model attack in the style of Shokri et al. 2017: learn from shadows how members look.

One classifier a class, trained on the shadows' prediction vectors with IN and OUT as the two labels. It
learns no example's own difficulty, which is what LiRA adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.base import Bools, Floats, Ints, MembershipKnowledge
from attacks.membership.observed import Signals, require_shadows
from attacks.membership.signals import scaled_confidence
from fl_core.errors import InputError, check_choice, check_number

SORTED_CLASSES = 3

CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "logistic regression": lambda _: LogisticRegression(C=1.0, max_iter=200),
    "random forest": lambda seed: RandomForestClassifier(n_estimators=50, min_samples_leaf=20, random_state=seed),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "multilayer perceptron": lambda seed: MLPClassifier(
        (32,), early_stopping=True, n_iter_no_change=5, random_state=seed
    ),
}
"""By name, from a seed."""

DEFAULT = "logistic regression"
SUREST = 1e-6
"""Probabilities closer to 0 or 1 than this become log-odds as if they were this close."""


@dataclass(frozen=True, kw_only=True)
class ShadowClassifier:
    """Shokri et al. 2017, "Membership Inference Attacks Against Machine Learning Models".

    Features: the 3 largest log probabilities, the true label's log probability and its scaled confidence,
    standardised. `classifier` is one of CLASSIFIERS, with scikit-learn's settings but for what is stated there. At most
    `max_rows` of the shadows × examples rows are used, drawn at random with `seed`. A class with fewer than `min_rows`
    rows IN or OUT is scored by one classifier trained on all classes together.
    """

    classifier: str = DEFAULT
    max_rows: int = 20_000
    min_rows: int = 20
    seed: int = 0
    needs: ClassVar[type[Signals]] = Signals

    def __post_init__(self) -> None:
        check_choice("the shadow classifier's classifier", self.classifier, CLASSIFIERS)
        check_number("shadow classifier max_rows", self.max_rows, minimum=2, integer=True)
        check_number("shadow classifier min_rows", self.min_rows, minimum=1, integer=True)

    @property
    def name(self) -> str:
        """What tables call it: with the classifier, unless it is the usual one."""
        return f"shadow classifier{f', {self.classifier}' * (self.classifier != DEFAULT)}"

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Log-odds of membership [examples], in nats.

        Raises InputError without shadows, without rows of both kinds, or for logits that are not finite.
        """
        shadows = require_shadows(self.name, signals, knowledge)
        labels = signals.labels
        target = prediction_features(signals.logits[0, 0], labels)

        number = shadows.members.size
        rows = np.arange(number)
        if number > self.max_rows:
            rows = np.sort(np.random.default_rng(self.seed).choice(number, self.max_rows, replace=False))
        row_labels = labels[rows % labels.size]
        members = shadows.members.reshape(-1)[rows]
        features = prediction_features(shadows.signals.logits[rows // labels.size, 0, rows % labels.size], row_labels)
        if members.all() or not members.any():
            raise InputError(
                "the shadow classifier needs shadows with and without the examples; all rows are of one kind"
            )

        scores = np.empty(labels.size)
        pooled = None
        for label in np.unique(labels):
            ours, theirs = labels == label, row_labels == label
            if min(int(members[theirs].sum()), int((~members[theirs]).sum())) >= self.min_rows:
                classifier = self._fit(features[theirs], members[theirs])
            else:
                pooled = pooled or self._fit(features, members)
                classifier = pooled
            scores[ours] = _log_odds(classifier, target[ours])
        return scores

    def _fit(self, features: Floats, members: Bools) -> Any:
        return make_pipeline(StandardScaler(), CLASSIFIERS[self.classifier](self.seed)).fit(features, members)


def prediction_features(logits: Floats, labels: Ints) -> NDArray[np.float64]:
    """Features [rows, 5] (4 with two classes) from logits [rows, classes] and labels [rows], in nats.

    Columns: the largest log probabilities in falling order, the true label's, its scaled confidence.
    Raises InputError as `scaled_confidence` does.
    """
    confidence = scaled_confidence(logits, labels)
    largest = -np.sort(-logits.astype(np.float64, copy=False), axis=-1)
    shifted = np.exp(largest - largest[:, :1])
    normaliser = largest[:, 0] + np.log(shifted.sum(axis=-1))
    top = largest[:, :SORTED_CLASSES] - normaliser[:, None]
    return np.column_stack([top, -np.logaddexp(0.0, -confidence), confidence])


def _log_odds(classifier: Any, features: Floats) -> NDArray[np.float64]:
    if hasattr(classifier, "decision_function"):
        exact: NDArray[np.float64] = classifier.decision_function(features)
        return exact
    odds: NDArray[np.float64] = logit(np.clip(classifier.predict_proba(features)[:, 1], SUREST, 1 - SUREST))
    return odds
