"""A round's sum under masks, tile by tile, for every replica of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from defenses.noise import cut
from defenses.secagg import keys
from defenses.secagg.cohort_masks import CohortMasks
from defenses.secagg.encoding import FixedPoint, shortened, signed, wrapped
from defenses.secagg.protocol import seeded
from defenses.secagg.refusals import Aborted
from fl_core.cohort import Tile
from fl_core.defended import Gathering
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.seeds import from_seed, seed
from fl_core.summing import Summing

if TYPE_CHECKING:
    from defenses.secagg.defense import SecAgg


class MaskedSum(Summing):
    """Encodes and masks every client's update as it comes, adds what the server receives, and unmasks the sum.

    It is a replica's own protocol for each replica. No bit depends on how the cohort is cut into tiles, and no more is
    in memory than a tile's masked vectors and one sum a replica.
    """

    def __init__(self, secagg: SecAgg, gathering: Gathering) -> None:
        self._gathering = gathering
        self._replicas = [_Replica(secagg, gathering, row) for row in range(len(gathering.turns))]
        self._like: Tree = {}

    def add(self, tile: Tile, updates: Tree) -> None:
        self._like = {name: value[:0, 0] for name, value in updates.items()}
        clients = self._gathering.cohort.clients
        for row in range(tile[0].start, tile[0].stop):
            here = self._gathering.cohort.present[row, tile[1]]
            seats = torch.nonzero(here).flatten()
            if len(seats):
                sent = {name: value[row - tile[0].start, seats.to(value.device)] for name, value in updates.items()}
                at = seats + tile[1].start
                self._replicas[row].receive(clients[row, at].tolist(), sent, self._gathering.weighing.weights[row, at])

    def total(self) -> Tree:
        if not self._like:
            return {}
        dtype = next(iter(self._gathering.sent.values())).dtype
        sums = torch.stack([replica.mean() for replica in self._replicas]).to(dtype)
        return cut(sums, self._like)


def secrets(run: int, replica: int, attempt: int) -> Callable[[int], bytes]:
    """Where the clients' secret bytes come from in a simulation, so that it can be repeated: no secret at all.

    A cohort that is asked again has others, as it has in the protocol.
    """
    draw = from_seed(seed(run, "secrets under masks", replica, attempt))
    return seeded(bytes(torch.randint(256, (32,), generator=draw, dtype=torch.uint8).tolist()))


class _Replica:
    """The protocol of one replica's round."""

    def __init__(self, secagg: SecAgg, gathering: Gathering, row: int) -> None:
        turn, weighing = gathering.turns[row], gathering.weighing
        self._secagg, self._run, self._replica, self._turn = secagg, gathering.run, gathering.replica_ids[row], turn
        self._places = {client: place for place, client in enumerate(turn.asked.tolist())}
        self._survivors = frozenset(self._places[client] for client in turn.clients.tolist())
        self._encoding = secagg.encoding(len(turn.asked), weighing.largest_weight)
        # Public weights are constants; others travel beside the update.
        self._divisor = float(weighing.divisors[row]) if weighing.public else None
        self._largest = weighing.largest_weight
        self._model = keys.model_hash({name: value[row] for name, value in gathering.sent.items()})
        self._masks: CohortMasks | None = None
        self._received: Tensor | None = None

    def receive(self, clients: Sequence[int], updates: Tree, weights: Tensor) -> None:
        """Take the updates [clients, ...] of some clients."""
        words = torch.stack(
            [
                self._encoded(client, {name: value[lane] for name, value in updates.items()}, float(weights[lane]))
                for lane, client in enumerate(clients)
            ]
        )
        if self._masks is None or self._received is None:
            parameters = self._secagg.parameters(len(self._places), words.shape[1])
            context = parameters.context(self._turn.attempt, self._model)
            random = secrets(self._run, self._replica, self._turn.attempt)
            self._masks = CohortMasks(parameters, context, random, words.device)
            self._received = torch.zeros_like(words[0])
        for masked in self._masks.masked([self._places[client] for client in clients], words):
            self._received.add_(masked)

    def mean(self) -> Tensor:
        """The weighted mean [d] of the survivors' updates, float64: all that the server can work out."""
        assert self._masks is not None
        assert self._received is not None
        bits, divisor = self._encoding.bits, self._divisor
        try:
            words = self._masks.unmasked(self._received, self._survivors)
        except Aborted as abort:  # enough came, but not from everywhere on a sparse graph: it was not made for so many
            raise InputError(
                f"the masked sum of round {self._turn.round + 1} is lost: {abort}; raise defense.dropout, or set "
                "graph=complete"
            ) from None
        if divisor is None:
            divisor, words = int(words[-1]) & ((1 << bits) - 1), words[:-1]
        if divisor == 0:  # nobody holds an example
            return torch.zeros(words.shape, dtype=torch.float64, device=words.device)
        return self._encoding.decode(signed(words, bits)) * (self._largest / divisor)

    def _encoded(self, client: int, update: Tree, weight: float) -> Tensor:
        """A client's vector [d], or [d + 1] with its weight, in words."""
        rows = [value.reshape(1, -1).double() * (weight / self._largest) for value in update.values()]
        if self._divisor is not None and isinstance(self._encoding, FixedPoint):
            rows = [shortened(row, self._encoding.step) for row in rows]  # the server's noise is made for the clip
        draw = from_seed(
            seed(self._run, "fixed point", self._replica, self._turn.round, client), next(iter(rows)).device
        )
        steps = self._encoding.encode(torch.cat(rows, 1), [draw])[0]
        if self._divisor is None:
            steps = torch.cat([steps, steps.new_tensor([round(weight)])])
        return wrapped(steps, self._encoding.bits)
