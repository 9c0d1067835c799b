"""An attack whose hyperparameters are chosen on shadows, never on the target.

A grid searched on the target's own labels reports the best of many looks at the answer. Here each of some shadows
plays the target, with the other shadows as its references; what does best on them, on average, is then run once on the
target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.base import Bools, Floats, MembershipAttack, MembershipKnowledge, Shadows
from attacks.membership.observed import Signals, require_shadows
from attacks.metrics import auc, tpr_at_fpr
from fl_core.errors import InputError, check_choice, check_number


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """`attack` with the best of `grid`: values to try for some of its options, all combinations of them.

    `metric` is the AUC or the TPR at `fpr`, the mean over `targets` shadows that play the target (all, if there are
    fewer), spread evenly over them, each with the first `references` others. A shadow that is the exact complement of
    the one that plays the target sits out too: in a design of complementary pairs, the references without it would tell
    who the members are. Of equally good combinations the first is taken.
    """

    attack: MembershipAttack
    grid: Mapping[str, Sequence[Any]]
    metric: Literal["auc", "tpr"] = "auc"
    fpr: float = 0.01
    targets: int = 8
    references: int = 64

    def __post_init__(self) -> None:
        check_choice("tuning's metric", self.metric, ("auc", "tpr"))
        check_number("tuning's fpr", self.fpr, above=0, maximum=1)
        check_number("tuning's targets", self.targets, minimum=1, integer=True)
        check_number("tuning's references", self.references, minimum=2, integer=True)
        for option, values in self.grid.items():
            check_choice(f"an option of {self.attack.name} to tune", option, [one.name for one in fields(self._plain)])
            if isinstance(values, str) or not values:
                raise InputError(f"tuning's grid gives {option} {values!r}; give a list of at least one value")
        self.candidates()  # bad values are refused now, not after the training

    @property
    def _plain(self) -> Any:
        """The attack, for functions that take dataclasses."""
        return self.attack

    @property
    def name(self) -> str:
        """That of the attack, and that it is tuned."""
        return f"{self.attack.name}, tuned"

    @property
    def needs(self) -> type[Signals]:
        """What the attack needs."""
        return self.attack.needs

    def candidates(self) -> list[MembershipAttack]:
        """The attack with every combination of the grid, the last option varying fastest."""
        combinations = product(*self.grid.values())
        return [replace(self._plain, **dict(zip(self.grid, values, strict=True))) for values in combinations]

    def choose(self, knowledge: MembershipKnowledge) -> MembershipAttack:
        """The best candidate on the shadows. The target is no argument, so it has no say.

        Raises InputError for fewer than 3 shadows, and as the attack and its metric do on them.
        """
        shadows = knowledge.shadows
        if shadows is None or len(shadows.members) < 3:
            has = 0 if shadows is None else len(shadows.members)
            raise InputError(
                f"{self.name} needs 3 shadows, one to play the target and 2 as its references, has {has}; train more"
            )
        candidates, number = self.candidates(), len(shadows.members)
        merits = np.zeros(len(candidates))
        for played in np.unique(np.linspace(0, number - 1, min(self.targets, number)).astype(int)):
            target = shadows.signals.select([played])
            known = replace(knowledge, shadows=without(shadows, int(played), self.references))
            merits += [self._merit(one.run(target, known), shadows.members[played]) for one in candidates]
        return candidates[int(np.argmax(merits))]

    def run(self, signals: Signals, knowledge: MembershipKnowledge) -> NDArray[np.float64]:
        """The chosen candidate's scores [examples]. Raises InputError as `choose` and the attack do."""
        require_shadows(self.name, signals, knowledge)
        return self.choose(knowledge).run(signals, knowledge)

    def _merit(self, scores: Floats, members: Bools) -> float:
        return auc(scores, members) if self.metric == "auc" else tpr_at_fpr(scores, members, self.fpr)


def without(shadows: Shadows, played: int, most: int) -> Shadows:
    """The first `most` shadows but for `played` and, where there are some, those with exactly the other members."""
    complements = ~(shadows.members == shadows.members[played]).any(axis=1)
    complements[played] = True
    kept = np.flatnonzero(~complements)[:most]
    return Shadows(signals=shadows.signals.select(kept), members=shadows.members[kept])
