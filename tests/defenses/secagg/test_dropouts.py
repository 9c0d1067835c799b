"""Whoever drops out at whatever stage, the sum is that of the survivors, bit for bit, or there is none.

What must come out is told from the pattern alone, by `expected`; on a sparse graph also from who is whose neighbour.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import random
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.secagg import keys
from defenses.secagg.client import Client
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted
from defenses.secagg.server import Server
from tests.cohorts import Cohort, cohort, order, plain_sum


def there(clients: int, stage: Stage, drops: Mapping[int, Stage]) -> list[int]:
    """Who sends its message of this stage, as long as the round goes on."""
    return [client for client in range(clients) if client not in drops or order(stage) < order(drops[client])]


def expected(parameters: Parameters, drops: Mapping[int, Stage]) -> list[int] | None:
    """The survivors on the complete graph, or None if the round has to abort."""
    left = [there(parameters.clients, stage, drops) for stage in parameters.stages]
    if any(len(some) < parameters.threshold for some in left):
        return None
    return there(parameters.clients, Stage.MASKED, drops)


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are the same all through a tree of rounds, so that nothing has to be agreed on or signed twice."""
    for name in ("private_key", "public_key", "agree", "derive", "sign", "verify"):
        monkeypatch.setattr(keys, name, lru_cache(maxsize=100_000)(getattr(keys, name)))


def fork(server: Server) -> Server:
    """Another server that has seen the same so far."""
    other = copy.copy(server)
    for name, value in vars(server).items():
        if isinstance(value, dict | set | np.ndarray):
            setattr(other, name, value.copy())
    return other


def explore(played: Cohort, server: Server, outgoing: Mapping[int, bytes], drops: dict[int, Stage]) -> tuple[int, int]:
    """Play on in every way in which clients can drop out; how many patterns that were, and how many ended in a sum."""
    parameters, stage = played.parameters, server.stage
    assert stage is not None
    answers: dict[int, bytes] = {}
    after: dict[int, Client] = {}
    for client in outgoing:
        after[client] = copy.copy(played.clients[client])
        answers[client] = after[client].answer(outgoing[client])
    clients = [after.get(number, client) for number, client in enumerate(played.clients)]
    played = dataclasses.replace(played, clients=clients)
    stages, seen, summed = parameters.stages, 0, 0
    for size in range(len(answers) + 1):
        for staying in itertools.combinations(answers, size):
            silent = drops | {client: stage for client in answers if client not in staying}
            survivors = expected(parameters, silent)
            other = fork(server)
            for client in staying:
                other.receive(answers[client])
            # However those who are still there may drop out later.
            later = (len(stages) - stages.index(stage)) ** len(staying)
            try:
                told = other.close()
            except Aborted:
                assert survivors is None
                seen += later
                continue
            if other.stage is None:
                assert survivors is not None
                assert other.survivors == tuple(survivors)
                assert other.total is not None
                assert other.total.tolist() == plain_sum(played.vectors, survivors, parameters.bits)
                seen, summed = seen + 1, summed + 1
            else:
                below = explore(played, other, told, silent)
                seen, summed = seen + below[0], summed + below[1]
    return seen, summed


COMPLETE = [
    pytest.param(clients, threshold, malicious, marks=[pytest.mark.heavy] if clients == 6 else [])
    for malicious in (False, True)
    for clients in range(2, 7)
    for threshold in range(2 * clients // 3 + 1 if malicious else 1, clients + 1)
]


@pytest.mark.parametrize(("clients", "threshold", "malicious"), COMPLETE)
def test_every_pattern_of_dropouts_gives_the_survivors_sum_or_none(quick_keys, clients, threshold, malicious):
    parameters = Parameters.complete(clients, 3, 17, threshold, malicious=malicious)
    played = cohort(parameters)
    seen, summed = explore(played, played.server, played.server.open(), {})
    stages = parameters.stages
    # All patterns, and those of them after which a sum is due, counted by who is left at the end.
    assert seen == (len(stages) + 1) ** clients
    assert summed == sum(
        math.comb(clients, end) * len(stages) ** (clients - end) for end in range(threshold, clients + 1)
    )


def expected_on_graph(played: Cohort, drops: Mapping[int, Stage]) -> list[int] | None:
    """The survivors, or None, on the graph that the round came to have: of the server only its ring is taken."""
    parameters = played.parameters
    left = {stage: set(there(parameters.clients, stage, drops)) for stage in parameters.stages}
    if min(len(left[Stage.KEYS]), len(left[Stage.SHARES])) < parameters.quorum:
        return None
    ring = played.server._graph(0).ring if parameters.neighbours else tuple(sorted(left[Stage.KEYS]))
    size, reach = len(ring), (parameters.neighbours or 2 * len(ring)) // 2
    row = size if 2 * reach >= size - 1 else reach  # all, where all are linked
    rows = [{ring[(at + step) % size] for step in range(row)} for at in range(size)]
    near = {client: {ring[(at + step) % size] for step in range(-reach, reach + 1)} for at, client in enumerate(ring)}
    dealt = left[Stage.SHARES]
    # Who has too few holders of its shares goes no further.
    alone = {client for client in dealt if len(near[client] & dealt) < parameters.threshold}
    for stage in parameters.stages[2:]:
        left[stage] -= alone
    if any(len(left[stage]) < parameters.quorum for stage in parameters.stages if stage is not Stage.UNMASK):
        return None
    survivors = left[Stage.MASKED]
    if any(len(some & part) < parameters.window for some in (dealt, survivors) for part in rows):
        return None
    for client in dealt:
        if near[client] & survivors and len(near[client] & left[Stage.UNMASK]) < parameters.threshold:
            return None
    return sorted(survivors)


@st.composite
def rounds(draw: st.DrawFn, sparse: bool, malicious: bool) -> tuple[Parameters, dict[int, Stage], int]:
    """Parameters of up to 50 clients, who drops out when, and a seed."""
    clients = draw(st.integers(8 if sparse else 2, 50))
    least = 2 * clients // 3 + 1 if malicious else (clients + 1) // 2
    quorum = draw(st.integers(least, max(least, 5 * clients // 6)))
    neighbours = 2 * draw(st.integers(1, (clients - 2) // 2)) if sparse else None
    parameters = Parameters(
        clients=clients,
        length=draw(st.integers(1, 5)),
        bits=draw(st.sampled_from([1, 8, 13, 24, 32, 33, 48, 62])),
        threshold=draw(st.integers(1, neighbours)) if neighbours else quorum,
        quorum=quorum,
        neighbours=neighbours,
        window=draw(st.integers(1, (neighbours + 3) // 4)) if neighbours and malicious else 0,
        malicious=malicious,
    )
    # As many as may drop out, fewer, or one too many.
    seed = draw(st.integers(0, 2**32))
    rng, spare = random.Random(seed), clients - quorum
    gone = rng.sample(range(clients), rng.choice([spare // 2, spare, spare + 1]))
    return parameters, {client: rng.choice(list(Stage)) for client in gone}, seed


@pytest.mark.heavy
@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_drawn_patterns_of_up_to_50_clients_give_the_survivors_sum_or_none(sparse, malicious):
    ended = {True: 0, False: 0}

    @settings(max_examples=16 if malicious else 32)
    @given(rounds(sparse, malicious))
    def check(drawn: tuple[Parameters, dict[int, Stage], int]) -> None:
        parameters, drops, seed = drawn
        played = cohort(parameters, seed)
        try:
            played.play(drops=drops, refusals={})
        except Aborted:
            assert expected_on_graph(played, drops) is None
        else:
            assert list(played.server.survivors) == expected_on_graph(played, drops)
            assert played.summed_rightly()
        ended[played.server.total is not None] += 1

    check()
    assert min(ended.values()) >= 3, ended
