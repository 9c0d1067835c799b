"""Plans to try defences on."""

from __future__ import annotations

from collections.abc import Sequence

from fl_core.participation import ParticipationEvent
from fl_core.plan import Plan
from fl_core.sampling import SamplingEvent


def plan(events: Sequence[SamplingEvent] = (), **changes) -> Plan:
    """Ten clients in each of twenty rounds, unless told otherwise."""
    rounds = changes.get("rounds", 20)
    given = {
        "rounds": rounds,
        "clients": 10,
        "sampling": tuple(events),
        "participation": ParticipationEvent("fixed", 1.0, rounds),
        "patterns": frozenset([tuple(range(rounds))]),
        "cohort": 10.0,
        "asked": 10,
        "ideal": True,
        "exact": True,
        "streams": True,
        "synchronous": True,
        "largest_weight": 1,
        "even": True,
        "stateless": True,
        "message": 50,
    }
    return Plan(**(given | changes))
