"""Secure aggregation as a defence in the engine: clients' updates go under masks, and their sum comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.discrete_gaussian import NoisePlan
from defenses.secagg.encoding import Encoding, FixedPoint, OnGrid
from defenses.secagg.graph import Sparse, sparse
from defenses.secagg.masked_sum import MaskedSum
from defenses.secagg.parameters import Parameters
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.defended import Gathering
from fl_core.errors import InputError, check_choice, check_number
from fl_core.fleet import Turn
from fl_core.plan import Plan

BITS = 32


@dataclass(frozen=True, kw_only=True)
class SecAgg(Defense):
    """The masking protocol of Bonawitz et al. 2017, on a complete graph or on the sparse one of Bell et al. 2020.

    Each client turns its weighted update and its weight into whole numbers (`encoding`) and masks them; the server
    learns the sum over those who came, and their total weight. In a list of defences it comes last. Every round has
    keys of its own, which are bound to the round, the model that was sent and these parameters.

    `bits` is the width of a coordinate of the sum, and `clip` the largest magnitude of a coordinate of an update; both
    make the grid that updates are rounded to (`FixedPoint.worst_error` bounds what that costs). Noise in shares
    (`dp_fedavg_shares`) has a grid of its own, on which nothing is clipped or rounded again.

    A round takes place if more than the share `threshold` of those who were asked have come; two thirds, where it is
    left out. On a sparse graph the thresholds are computed for up to the share `corrupt` of the clients colluding with
    the server and `dropout` of them lost. Whoever is lost had shared keys: what masks it left on the others' vectors is
    taken off again. From a round that fails nothing is learned, and another cohort is asked.

    What is assumed: a server that follows the protocol, or with `malicious` any server, where clients have identities
    that it cannot make up; and fewer colluding clients than the threshold. The masks then hide what the sum does not
    show, and nothing else.

    Formal guarantee: none by itself, since the sum is released as it is. In a list a server is promised what the other
    parts promise one that sees sums alone. A participant is promised no more than somebody who knows the cohorts, as
    clients learn with whom they share keys. Noise that each client adds by itself is accounted for each update alone,
    since it is rounded before it is summed.
    """

    bits: int | None = None
    clip: float = 8.0
    threshold: float | None = None
    graph: Literal["complete", "sparse"] = "complete"
    corrupt: float = 0.1
    dropout: float = 0.1
    malicious: bool = False
    grid: NoisePlan | None = field(default=None, repr=False)

    name = "secagg"
    masks = True

    def __post_init__(self) -> None:
        check_choice("defense.graph", self.graph, ("complete", "sparse"))
        if self.threshold is not None:
            check_number("defense.threshold", self.threshold, minimum=0, below=1)
            if self.graph == "sparse":
                raise InputError(
                    "defense.threshold is set, but a sparse graph's thresholds follow from defense.corrupt and "
                    "defense.dropout; leave it out, or set graph=complete"
                )
        if not isinstance(self.malicious, bool):
            raise InputError(f"defense.malicious is {self.malicious!r}; it must be true or false")
        self.encoding(clients=1, largest_weight=1)  # it checks its own numbers

    def encoding(self, clients: int, largest_weight: int) -> Encoding:
        """How vectors of so many clients become whole numbers."""
        if self.grid is not None:
            return OnGrid(grid=self.grid)
        bits = BITS if self.bits is None else self.bits
        return FixedPoint(clients=clients, bits=bits, clip=self.clip, largest_weight=largest_weight)

    def parameters(self, clients: int, length: int = 1) -> Parameters:
        """The protocol's, for so many clients that were asked, and vectors of that length."""
        bits = self.encoding(1, 1).bits
        if self.graph == "sparse":
            design = _design(clients, self.corrupt, self.dropout, self.malicious)
            return Parameters.sparse(design, length, bits)
        threshold = None if self.threshold is None else math.floor(self.threshold * clients + 1e-9) + 1
        return Parameters.complete(clients, length, bits, threshold, malicious=self.malicious)

    def check(self, plan: Plan) -> None:
        if not plan.streams:
            raise InputError(
                f"defense={self.name} shows the server a weighted sum alone, and this aggregator has to see each "
                "update; set aggregator=mean"
            )
        if not plan.synchronous:
            raise InputError(
                f"defense={self.name} sums the updates of those who share keys in one round, and an asynchronous fleet "
                "mixes rounds; choose a synchronous fleet"
            )
        if plan.cohort < 2:
            raise InputError(
                f"defense={self.name} needs a cohort of at least 2, and a round asks {plan.cohort:g}; ask more clients"
            )
        self.encoding(plan.asked, plan.largest_weight)
        self.parameters(plan.asked)

    def behind(self, earlier: Sequence[Defense]) -> SecAgg:
        """On the grid of the noise that comes before, if that has one."""
        grid = next((part.grid for part in earlier if part.grid is not None), None)
        if grid is not None and self.bits not in (None, grid.bits):
            raise InputError(
                f"defense.bits is {self.bits} for the masks and {grid.bits} for the noise in shares, whose grid is "
                "summed; leave the masks' out"
            )
        return replace(self, grid=grid)

    def lacks(self, turn: Turn) -> str | None:
        asked, came = len(turn.asked), len(turn.clients)
        needed = 2 if asked < 2 else max(2, self.parameters(asked).quorum)
        if came >= needed:
            return None
        remedy = "ask more clients" if asked < 2 else "lower the fleet's losses or defense.threshold"
        if asked >= 2 and self.graph == "sparse":
            remedy = "lower the fleet's losses, or raise defense.dropout"
        return f"of {asked} clients {came} came, and a masked sum needs {needed}; {remedy}"

    def summing(self, gathering: Gathering) -> MaskedSum:
        return MaskedSum(self, gathering)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(reason="masks alone give no ε, since the sum is released as it is", unit=unit, view=view)

    def guarantee_of(self, part: Defense, view: str, unit: Unit, plan: Plan) -> PrivacyStatement | NoGuarantee:
        if part is self:
            return self.guarantee(view, unit, plan)
        sums = "secure_server" if view == "server" else view
        if part.sealed and part.grid is None:  # rounding each update is post-processing; of their sum it would not be
            sums = "server"
        if view == "malicious_server":  # it could leave the others out, and their noise
            sums = "server"
        # What is said to those who know the cohorts is true of those who do not, too: the better of both.
        plans = [plan.in_the_open()] if view == "participant" else [plan.in_the_open(), plan]
        found = min((part.guarantee(sums, unit, known) for known in plans), key=lambda one: one.epsilon)
        if isinstance(found, NoGuarantee) or view != "server":
            return replace(found, view=view)
        alone = part.guarantee("server", unit, plan)
        if alone.epsilon == found.epsilon:  # it needs no masks
            return replace(found, view=view)
        # Another server could leave clients out, and their shares of the noise; one who helps it knows its own share.
        how = "summed under masks by a server that follows the protocol and that no client helps"
        return replace(found, view=view, sampler=f"{found.sampler}, {how}")


@lru_cache(maxsize=64)
def _design(clients: int, corrupt: float, dropout: float, malicious: bool) -> Sparse:
    return sparse(clients, corrupt=corrupt, dropout=dropout, malicious=malicious)
