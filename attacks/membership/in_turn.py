"""Every replica in turn as the target, with the others as the attacker's shadows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from attacks.base import Bools, MembershipAttack, MembershipKnowledge, Shadows
from attacks.membership.observed import Signals
from attacks.membership.reading import narrow


def scores_in_turn(
    attack: MembershipAttack, signals: Signals, members: Bools, knowledge: MembershipKnowledge | None = None
) -> NDArray[np.float64]:
    """Scores [replicas, examples] of an attack, which learns the `members` [replicas, examples] of the others alone.

    `knowledge` is what else it has (None: nothing). Raises InputError for signals of a view that does not show what
    the attack needs, with one replica, and as the attack.
    """
    seen = narrow(signals, attack.needs)
    found = []
    for target in range(seen.replicas):
        others = np.delete(np.arange(seen.replicas), target)
        shadows = Shadows(signals=seen.select(others), members=members[others])
        known = replace(knowledge or MembershipKnowledge(), shadows=shadows)
        found.append(attack.run(seen.select([target]), known))
    return np.stack(found)
