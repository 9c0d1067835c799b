"""Who masks with whom: everyone with everyone, or the sparse random graph of Bell et al. 2020.

Bell, Bonawitz, Gascón, Lepoint & Raykova 2020 put the clients on a ring in random order and let each mask with, and
deal its shares to, the k/2 before and the k/2 after it (a Harary graph with its nodes shuffled). A few things have to
hold but for a small chance, and `sparse` finds the smallest k, and a threshold t, for which they do. Of n clients at
most C collude with the server and at most D drop out. A client's neighbours are k of the others at random, so how many
of them collude or drop out is hypergeometric; each tail is taken n times, once a client (union bound).

Against a server that follows the protocol, where who drops out does not depend on the graph:

- fewer than t of a client's neighbours collude (or the server could have both of its secrets);
- no k/2 clients in a row all collude or drop out (or the honest survivors could fall apart into separate sums);
- at least t of a client's neighbours stay to the end (or the round aborts).

A server that does not follow it picks those who "drop out" once it knows the graph, and could cut some clients off by
dropping those around them. So there every client looks at the set of survivors, the one that two thirds of all have
signed, and refuses it if some k/2 clients in a row hold fewer than `window` survivors. That is more than collude in any
k/2 in a row, so each holds an honest survivor, and the honest survivors are linked all round the ring: whoever was
dropped, their sum stays one. (Bell et al. promise less there, a sum over a large part of the clients, for a cost that
grows with a power of log n; here each client also reads a hash of everyone's keys and everyone's signature.)

Such a server has a say in the graph, too. The order comes from a hash of all public keys, and everyone computes it, so
it cannot be chosen. But one who speaks last can try other keys of colluding clients until it likes the order. Each
trial has the chances above: `grinding_bits` = g makes them hold for 2^g trials together. What is not covered: clients
that are corrupted because of where on the ring they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from defenses.secagg import keys, masks
from fl_core.errors import InputError, check_number

LARGEST_COHORT = 1 << 16


@lru_cache(maxsize=4)
def log_factorials(largest: int) -> NDArray[np.float64]:
    """ln 0! to ln largest!, to about 1e-11 for 10⁵."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


def tail(at_least: int, drawn: int, marked: int, population: int, logs: NDArray[np.float64]) -> float:
    """log2 P[X ≥ at_least], X the marked among `drawn` of a `population` at random, `marked` of which are marked.

    −inf where it cannot be. `logs` are `log_factorials` up to the population or more.
    """
    least, most = max(at_least, drawn + marked - population, 0), min(drawn, marked)
    if least > most:
        return -np.inf
    x = np.arange(least, most + 1)
    terms = (
        logs[marked]
        - logs[x]
        - logs[marked - x]
        + logs[population - marked]
        - logs[drawn - x]
        - logs[population - marked - drawn + x]
    ) - (logs[population] - logs[drawn] - logs[population - drawn])
    return float(np.logaddexp.reduce(terms) / np.log(2))


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """A sparse graph that does what it should, but for 2^-security_bits and 2^-correctness_bits.

    neighbours: k, even. threshold: t, the shares that recover a secret. quorum: how many have to be in the sum.
    window: how many of any k/2 in a row have to be in it; 0 where the server follows the protocol. The rest is what it
    was computed for: the kind of server, `corrupt` and `dropout` as shares of the clients, and log2 of the chances, as
    they came out, that privacy or the sum is lost.
    """

    clients: int
    neighbours: int
    threshold: int
    quorum: int
    window: int
    malicious: bool
    corrupt: float
    dropout: float
    insecurity: float
    failure: float


def sparse(
    clients: int,
    *,
    corrupt: float,
    dropout: float,
    security_bits: float = 40,
    correctness_bits: float = 20,
    malicious: bool = False,
    grinding_bits: float = 64,
) -> Sparse:
    """The graph of the smallest degree for which privacy fails with at most 2^-security_bits and the sum with at most
    2^-correctness_bits, and of its thresholds the highest. `grinding_bits` count against a malicious server only.

    Raises InputError where no graph is sparser than the complete one. Source: Bell et al. 2020, section 3, for the
    honest-but-curious server, with exact tails in place of their bounds.
    """
    check_number("clients", clients, minimum=3, maximum=LARGEST_COHORT, integer=True)
    # Below a third each, two quorums have more clients in common than can collude.
    check_number("corrupt", corrupt, minimum=0, below=1 / 3 if malicious else 1)
    check_number("dropout", dropout, minimum=0, below=1 / 3 if malicious else 1)
    check_number("security_bits", security_bits, minimum=1)
    check_number("correctness_bits", correctness_bits, minimum=1)
    check_number("grinding_bits", grinding_bits, minimum=0)
    bad, gone = int(corrupt * clients + 1e-9), int(dropout * clients + 1e-9)  # 0.29 · 100 is 29
    secure = -security_bits - (grinding_bits if malicious else 0)
    for degree in range(2, clients - 1, 2):
        found = _thresholds(clients, degree, bad, gone, secure, -correctness_bits, malicious)
        if found:
            threshold, window, insecurity, failure = found
            return Sparse(
                clients=clients,
                neighbours=degree,
                threshold=threshold,
                quorum=clients - gone,
                window=window,
                malicious=malicious,
                corrupt=corrupt,
                dropout=dropout,
                insecurity=insecurity + (grinding_bits if malicious else 0),
                failure=failure,
            )
    raise InputError(
        f"no graph of {clients} clients is sparser than the complete one at corrupt={corrupt:g}, dropout={dropout:g} "
        f"and {security_bits:g} bits; take the complete graph, more clients, or lower demands"
    )


def _thresholds(
    n: int, degree: int, bad: int, gone: int, secure: float, correct: float, malicious: bool
) -> tuple[int, int, float, float] | None:
    """(t, window, log2 of what is lost of privacy, and of the sum) for one degree, or None if it has none."""
    logs, each, half = log_factorials(n), float(np.log2(n)), degree // 2
    fewest = n - gone  # on the ring, where all who drop out do so at once and all who collude are there

    def too_few_stay(t: int) -> float:
        return each + tail(degree - t + 1, degree, gone, n - 1, logs)

    if malicious:
        window = bisect_left(range(half + 1), True, key=lambda w: each + tail(w, half, bad, fewest, logs) <= secure - 1)
        apart = each + tail(window, half, bad, fewest, logs)
        refused = each + tail(half - window + 1, half, gone, n, logs)
    else:
        window, refused = 0, -np.inf
        apart = each + tail(half, half, min(bad + gone, n), n, logs)
    threshold = bisect_left(range(1, degree + 1), True, key=lambda t: np.logaddexp2(refused, too_few_stay(t)) > correct)
    if window > half or threshold < 1:
        return None
    insecurity = float(np.logaddexp2(apart, each + tail(threshold, degree, bad, fewest - 1, logs)))
    failure = float(np.logaddexp2(refused, too_few_stay(threshold)))
    return (threshold, window, insecurity, failure) if insecurity <= secure else None


def arrange(session: bytes, members: Sequence[int], degree: int | None) -> Graph:
    """The graph of a session's `members` (in order of their numbers): a function of the session, for all to verify.

    Degree None is the complete graph. The ring is in order of one pseudorandom number of 62 bits for each member.
    """
    if degree is None or degree >= len(members) - 1:
        return Graph(ring=tuple(members), degree=len(members) - 1)
    drawn = masks.expand(keys.derive(session, session, "graph"), len(members), masks.LARGEST_BITS)
    return Graph(ring=tuple(members[place] for place in np.argsort(drawn, kind="stable").tolist()), degree=degree)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The clients of a round on their ring, each linked to the `degree` nearest ones."""

    ring: tuple[int, ...]
    degree: int

    @property
    def complete(self) -> bool:
        """Whether everybody is linked to everybody."""
        return self.degree >= len(self.ring) - 1

    @cached_property
    def places(self) -> dict[int, int]:
        """Where on the ring each client stands, from 0."""
        return {client: place for place, client in enumerate(self.ring)}

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Those who mask with `client`, without itself, in order of their numbers."""
        size, place = len(self.ring), self.places[client]
        if self.complete:
            return tuple(sorted(self.ring[:place] + self.ring[place + 1 :]))
        steps = range(1, self.degree // 2 + 1)
        return tuple(sorted(self.ring[(place + sign * step) % size] for step in steps for sign in (-1, 1)))

    def fewest_in_a_row(self, chosen: Container[int]) -> int:
        """How many of `chosen` are at least among any degree/2 clients in a row; among all, if all are linked."""
        half = len(self.ring) if self.complete else self.degree // 2
        held = np.array([client in chosen for client in self.ring], dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(np.concatenate([held, held[: half - 1]]))])
        return int((sums[half:] - sums[:-half]).min())
