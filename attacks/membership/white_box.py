"""A classifier of how gradients and losses go round by round, trained on shadows.

In the style of the passive attack of Nasr et al. 2019, "Comprehensive Privacy Analysis of Deep Learning: Passive and
Active White-box Inference Attacks against Centralized and Federated Learning". Theirs is a network over whole gradients
of several epochs; here lengths and inner products stand for the gradients, of all layers and of the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from attacks.base import MembershipKnowledge
from attacks.membership.calibrated import require_both_kinds
from attacks.membership.observed import ParticipantSignals, Signals, require_signals
from attacks.membership.series import series
from fl_core.errors import check_number

FEATURES = ("round_confidence", "gradient_norm", "layer_norm", "step_cosine", "layer_product")
"""What is seen of an example in a round; the scaled confidence under the released model comes once more at the end."""


@dataclass(frozen=True, kw_only=True)
class WhiteBox:
    """Boosted trees on `FEATURES` in at most `rounds` of the recorded rounds, evenly spread, the last among them.

    Trees do not mind that lengths and products have other scales. They learn no example's own difficulty, which is what
    calibrated attacks add. At most `max_rows` of the shadows x examples are learned from, drawn with `seed`.
    """

    rounds: int = 8
    trees: int = 60
    max_rows: int = 20_000
    seed: int = 0

    name: ClassVar[str] = "white box"
    needs: ClassVar[type[Signals]] = ParticipantSignals

    def __post_init__(self) -> None:
        for option in ("rounds", "trees"):
            check_number(f"white box {option}", getattr(self, option), minimum=1, integer=True)
        check_number("white box max_rows", self.max_rows, minimum=2, integer=True)

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Log-odds of membership [examples], in nats.

        Raises InputError for a view that does not show the models of rounds, and without shadows of both kinds.
        """
        require_signals(self.name, signals, self.needs)
        shadows = require_both_kinds(self.name, signals, knowledge)
        replicas, examples = shadows.members.shape
        rows = some_rows(replicas * examples, self.max_rows, self.seed)
        learned = np.concatenate([self._features(shadows.signals.select([row])) for row in range(replicas)])[rows]
        trees = HistGradientBoostingClassifier(max_iter=self.trees, max_leaf_nodes=15, random_state=self.seed)
        trees.fit(learned, shadows.members.reshape(-1)[rows])
        scores: NDArray[np.float64] = trees.decision_function(self._features(signals))
        return scores

    def _features(self, signals: Signals) -> NDArray[np.float64]:
        """Of one replica: [examples, features]."""
        found = []
        for feature in FEATURES:
            values = series(self.name, feature, signals)[0]
            count = min(self.rounds, len(values))
            found.append(values[np.linspace(len(values) - 1, 0, count).round().astype(int)])
        return np.concatenate([*found, signals.confidence[0, :1]]).T


def some_rows(number: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` of `number` rows, drawn at random, in order."""
    if number <= most:
        return np.arange(number)
    return np.sort(np.random.default_rng(seed).choice(number, most, replace=False))
