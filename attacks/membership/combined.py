"""All that a view shows, in one score: the strongest attack here on that view, learned from shadows.

Every signal is calibrated example by example (`calibrated`), and a classifier learns from the shadows how much each
counts, calibrated and as it is. A shadow's own calibration leaves that shadow out, so that it looks to the classifier
as the target does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.base import MembershipKnowledge
from attacks.membership.calibrated import likelihood_ratios, require_both_kinds
from attacks.membership.observed import KINDS, Signals, require_signals
from attacks.membership.series import SERIES, mean_over_rounds, series
from attacks.membership.white_box import some_rows
from fl_core.errors import check_choice, check_number

VIEWS = ("released_model", "participant", "secure_server", "server")


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Logistic regression on the likelihood ratios of all signals that `view` shows.

    Three features a signal: its mean over rounds (or queries) as it is, the ratio of that mean, and the sum of the
    ratios of all rounds. The first counts where shadows are few and an example's own difficulty is poorly known.
    `strength` is the inverse of the L2 penalty on standardised features. At most `max_rows` of the shadows x examples
    are learned from, drawn with `seed`. A server's signals are of the example's owner, where the attacker knows it.
    """

    view: str
    strength: float = 0.1
    max_rows: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("combined view", self.view, VIEWS)
        check_number("combined strength", self.strength, above=0)
        check_number("combined max_rows", self.max_rows, minimum=2, integer=True)

    @property
    def name(self) -> str:
        """What tables call it: with its view."""
        return f"all signals of {self.view}"

    @property
    def needs(self) -> type[Signals]:
        """The signals of its view."""
        return KINDS[self.view]

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the series that go in."""
        return tuple(name for kind, names in SERIES.items() if issubclass(self.needs, kind) for name in names)

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """Log-odds of membership [examples], in nats.

        Raises InputError for a narrower view, and without shadows of both kinds.
        """
        require_signals(self.name, signals, self.needs)
        shadows = require_both_kinds(self.name, signals, knowledge)
        ours, theirs = [], []
        for name in self.signals:
            own, others = (series(self.name, name, one, knowledge.owners) for one in (signals, shadows.signals))
            means = [mean_over_rounds(one, nothing=np.nan)[:, None] for one in (own, others)]
            for target, known in ((means[0][0], means[1]), (own[0], others)):
                of_target, of_shadows = likelihood_ratios(target, known, shadows.members)
                ours.append(of_target.sum(axis=0))
                theirs.append(of_shadows.sum(axis=1).reshape(-1))
            ours.append(np.nan_to_num(means[0][0, 0]))
            theirs.append(np.nan_to_num(means[1]).reshape(-1))
        rows = some_rows(shadows.members.size, self.max_rows, self.seed)
        learner = make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=500))
        learner.fit(np.column_stack(theirs)[rows], shadows.members.reshape(-1)[rows])
        scores: NDArray[np.float64] = learner.decision_function(np.column_stack(ours))
        return scores
