"""Servers that do not follow the protocol: what they get of honest clients, and of clients with a fault planted.

Each attack ends in the sum of the group of clients that it was after, bit for bit, or in refusals. That it comes to its
sum against the faulty client shows that it would be noticed if the client that is tested had the fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import pytest

from defenses.secagg import keys, masks, shamir, wire
from defenses.secagg.client import Client
from defenses.secagg.masks import Words
from defenses.secagg.messages import Check, Inbox, Masked, Message, Signatures, Survivors, Unmask
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Reason, Rejected
from tests.cohorts import Cohort, cohort, plain_sum

OWN, KEY = "self-mask secret", "mask key"


class Loot:
    """What a server gathers: masked vectors, and shares of either secret by owner and holder."""

    def __init__(self, played: Cohort) -> None:
        self.played = played
        self.masked: dict[int, Words] = {}
        self.shares: dict[str, dict[int, dict[int, int]]] = {OWN: defaultdict(dict), KEY: defaultdict(dict)}
        self.keys: dict[int, bytes] = {}
        self.refused: dict[int, Reason] = {}

    def ask(self, client: int, message: Message) -> Message | None:
        """What the client answers to this; nothing, if it refuses."""
        try:
            raw = self.played.clients[client].answer(self.played.from_server(client, message))
        except Rejected as refusal:
            self.refused[client] = refusal.reason
            return None
        return self.played.read(raw)

    def take(self, holder: int, answer: Message | None, survivors: Collection[int]) -> None:
        """The shares that a client gave when it was told of these survivors."""
        if answer is not None:
            assert isinstance(answer, Unmask)
            for owner, share in answer.shares:
                self.shares[OWN if owner in survivors else KEY][owner][holder] = share

    def collude(self, client: int) -> None:
        """All that a client holds, and its own mask key."""
        self.keys[client] = self.played.clients[client]._mask_secret
        for owner, (of_key, of_self) in self.played.clients[client]._held.items():
            self.shares[KEY][owner][client] = of_key
            self.shares[OWN][owner][client] = of_self

    def signature(self, signer: int, survivors: Collection[int]) -> bytes:
        """Its signature for these survivors."""
        server, clients = self.played.server, self.played.parameters.clients
        digest = wire.survivors_digest(server._session(signer), server._dealt, survivors, clients)
        return self.played.from_client(signer, Check(digest=digest))[-keys.SIGNATURE_BYTES :]

    def secret(self, kind: str, owner: int) -> bytes | None:
        if kind == KEY and owner in self.keys:
            return self.keys[owner]
        given = self.shares[kind][owner]
        if len(given) < self.played.parameters.threshold:
            return None
        found = shamir.recover(list(given.values()), shamir.weights([holder + 1 for holder in given]))
        adverts = self.played.server._adverts[owner]
        context = self.played.clients[owner].context
        if kind == OWN:
            assert keys.commitment(found, context, owner) == adverts.commitment
        else:
            assert keys.public_key(keys.private_key(found)) == adverts.mask_key
        return found

    def sum_of(self, group: Collection[int], masked_with: Mapping[int, Collection[int]]) -> list[int] | None:
        """The group's plain sum, if the loot suffices: `masked_with` says with whom each of them has masked."""
        server, total = self.played.server, None
        for client in group:
            words, own = self.masked[client].copy(), self.secret(OWN, client)
            if own is None:
                return None
            masks.add(words, keys.self_seed(own, server._session(client), client), subtract=True)
            for other in set(masked_with[client]) - set(group):
                one, another = self.secret(KEY, other), server._adverts[client].mask_key
                if one is None:
                    one, another = self.secret(KEY, client), server._adverts[other].mask_key
                if one is None:
                    return None
                agreed = keys.agree(keys.private_key(one), another)
                seed = keys.pair_seed(agreed, server._session(client), (client, other))
                masks.add(words, seed, subtract=client < other)
            total = words if total is None else total + words
        assert total is not None
        masks.reduce(total, self.played.parameters.bits)
        return total.tolist()


def start(parameters: Parameters, client: type[Client]) -> tuple[Loot, dict[int, Inbox]]:
    """A round up to the shares: the loot so far, and what an honest server would now hand on."""
    played = cohort(parameters, client=client)
    told = played.play(until=Stage.MASKED)
    inboxes = {client: played.read(raw) for client, raw in told.items()}
    return Loot(played), {client: inbox for client, inbox in inboxes.items() if isinstance(inbox, Inbox)}


def mask(loot: Loot, inboxes: Mapping[int, Inbox]) -> Stage:
    """Let clients mask their vectors, with whatever they are handed; the stage that comes next."""
    played = loot.played
    for client, inbox in inboxes.items():
        raw = played.clients[client].answer(played.from_server(client, inbox))
        message = played.server.receive(raw).message
        loot.masked[client] = message.words.copy()
    played.server.close()
    return played.server.stage


def everyone(parameters: Parameters) -> dict[int, list[int]]:
    """With whom each masks on the complete graph."""
    clients = range(parameters.clients)
    return {client: [other for other in clients if other != client] for client in clients}


# It asks twice, for both secrets of one client.


class Forgetful(Client):
    """It answers for as many sets of survivors as it is told of."""

    def _in_order(self, message: Message) -> None:
        self._asked = dict(getattr(self, "_held", {}))

    def _unmask(self) -> Unmask:
        answer = super()._unmask()
        self._held = self._asked
        return answer


@pytest.mark.parametrize(("client", "leaks"), [(Client, False), (Forgetful, True)])
def test_a_server_that_asks_for_both_secrets_of_a_client_gets_one(client, leaks):
    parameters = Parameters.complete(6, 4, 24, 4)
    loot, inboxes = start(parameters, client)
    mask(loot, inboxes)
    for survivors in (tuple(range(6)), (1, 2, 3, 4, 5)):
        for holder in range(1, 6):
            loot.take(holder, loot.ask(holder, Survivors(members=survivors)), survivors)
    found = loot.sum_of([0], everyone(parameters))
    assert (found == plain_sum(loot.played.vectors, [0], 24)) == leaks
    assert loot.refused == ({} if leaks else dict.fromkeys(range(1, 6), Reason.BOTH_SECRETS))


# It takes a client for dropped out, and then finds its vector.


class Unmasked(Client):
    """It puts no mask of its own on its vector."""

    def _mask(self, message: Inbox) -> Message:
        masked = super()._mask(message)
        masks.add(masked.words, self.mask_seeds()[0][0], subtract=True)
        masks.reduce(masked.words, self.parameters.bits)
        return masked


@pytest.mark.parametrize(("client", "leaks"), [(Client, False), (Unmasked, True)])
def test_a_vector_that_comes_late_stays_masked(client, leaks):
    parameters = Parameters.complete(6, 4, 24, 4)
    loot, inboxes = start(parameters, client)
    mask(loot, inboxes)
    survivors = (1, 2, 3, 4, 5)
    for holder in survivors:
        loot.take(holder, loot.ask(holder, Survivors(members=survivors)), survivors)
    words, key = loot.masked[0].copy(), loot.secret(KEY, 0)
    assert key is not None
    for other in survivors:
        agreed = keys.agree(keys.private_key(key), loot.played.server._adverts[other].mask_key)
        seed = keys.pair_seed(agreed, loot.played.server._session(0), (0, other))
        masks.add(words, seed, subtract=True)  # client 0 has added them all
    masks.reduce(words, 24)
    assert (words.tolist() == loot.played.vectors[0].tolist()) == leaks
    assert not loot.refused


# It tells different clients of different survivors.


class Trusting(Client):
    """It takes the survivors that it is told of for those that all are told of."""

    def _verify_signatures(self, message: Signatures) -> None:
        pass


def test_half_the_clients_may_be_told_otherwise_in_the_honest_but_curious_variant():
    """What that variant does not protect from: at a threshold of half the clients, a server that lies has both."""
    parameters = Parameters.complete(6, 4, 24, 3)
    loot, inboxes = start(parameters, Client)
    mask(loot, inboxes)
    for holder in range(6):
        survivors = tuple(range(6)) if holder < 3 else (1, 2, 3, 4, 5)
        loot.take(holder, loot.ask(holder, Survivors(members=survivors)), survivors)
    assert loot.sum_of([0], everyone(parameters)) == loot.played.vectors[0].tolist()


@pytest.mark.parametrize(("client", "leaks"), [(Client, False), (Trusting, True)])
def test_the_consistency_check_keeps_the_sum_from_being_one_of_two(client, leaks):
    """Of 10 clients 3 collude, and the threshold is 7: no client's secrets are both to be had. But each client may be
    told that another three have dropped out, so that of all but two the keys are given away, and their sum is bare.
    """
    parameters = Parameters.complete(10, 4, 24, malicious=True)
    assert parameters.threshold == 7
    group, others, corrupt = (0, 1), (2, 3, 4, 5, 6), (7, 8, 9)
    gone = {other: {others[(at + step) % 5] for step in (1, 2, 3)} for at, other in enumerate(others)}
    gone |= {0: {2, 3, 4}, 1: {5, 6, 2}}
    loot, inboxes = start(parameters, client)
    assert mask(loot, inboxes) is Stage.CHECK
    for one in corrupt:
        loot.collude(one)
    told = {one: tuple(member for member in range(10) if member not in gone[one]) for one in (*group, *others)}
    for one, survivors in told.items():
        assert loot.ask(one, Survivors(members=survivors)) is not None
    for one, survivors in told.items():
        # As many signatures as it takes, each true, but for what its signer was told.
        signers = survivors[: parameters.quorum]
        signatures = tuple((signer, loot.signature(signer, told.get(signer, survivors))) for signer in signers)
        loot.take(one, loot.ask(one, Signatures(signatures=signatures)), survivors)
    found = loot.sum_of(group, everyone(parameters))
    assert (found == plain_sum(loot.played.vectors, group, 24)) == leaks
    assert set(loot.refused.values()) == (set() if leaks else {Reason.BAD_SEAL})


# It picks who drops out by where they are on the sparse graph's ring.

SPARSE = Parameters(clients=30, length=4, bits=24, threshold=4, quorum=21, neighbours=8, window=1, malicious=True)


class Unwary(Client):
    """It does not look at the ring."""

    def _thick(self, members: Sequence[int], what: str) -> None:
        pass


def finish(loot: Loot, survivors: Collection[int], asked: Collection[int], acknowledged: Mapping[int, bytes]) -> None:
    """Have the survivors signed by those who are asked and do sign, and gather the shares that they give for it."""
    near = loot.played.server._graph(0).neighbours
    signed = []
    for client in asked:
        entries = tuple((other, acknowledged[other]) for other in near(client) if other in survivors)
        if loot.ask(client, Survivors(members=tuple(sorted(survivors)), acknowledgements=entries)) is not None:
            signed.append(client)
    signatures = tuple((client, loot.signature(client, survivors)) for client in sorted(signed))
    for client in signed:
        loot.take(client, loot.ask(client, Signatures(signatures=signatures)), survivors)


@pytest.mark.parametrize(("client", "leaks"), [(Client, False), (Unwary, True)])
def test_an_arc_of_the_ring_cannot_be_cut_off_by_dropping_those_around_it(client, leaks):
    """Five in a row are one another's neighbours; the four on either side of them are said to have dropped out."""
    loot, inboxes = start(SPARSE, client)
    mask(loot, inboxes)
    graph = loot.played.server._graph(0)
    group, gone = graph.ring[4:9], {*graph.ring[:4], *graph.ring[9:13]}
    survivors = set(range(30)) - gone
    finish(loot, survivors, sorted(survivors), loot.played.server._masked)
    found = loot.sum_of(group, {one: graph.neighbours(one) for one in group})
    assert (found == plain_sum(loot.played.vectors, group, 24)) == leaks
    assert set(loot.refused.values()) == (set() if leaks else {Reason.GRAPH})


class Incurious(Client):
    """It does not ask its neighbours with whom they have masked."""

    def _verify_acknowledgements(self, message: Survivors, survivors: frozenset[int]) -> None:
        pass


@pytest.mark.parametrize(("client", "leaks"), [(Client, False), (Incurious, True)])
def test_shares_that_were_withheld_do_not_part_a_client_from_the_rest(client, leaks):
    """The victim is told that every other one of its neighbours has dealt no shares, so that it masks with the others
    alone. Then those are said to have dropped out, and the first are to give shares of its self-mask secret.
    """
    loot, inboxes = start(SPARSE, client)
    server, victim = loot.played.server, 0
    graph = server._graph(0)
    place = graph.ring.index(victim)
    around = [graph.ring[(place + step) % 30] for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
    asked, partners = set(around[::2]), set(around[1::2])
    told = inboxes[victim]
    inboxes[victim] = Inbox(
        members=tuple(member for member in told.members if member not in asked),
        sealed=tuple(one for one in told.sealed if one[0] not in asked),
    )
    acknowledged = {}
    for client_, inbox in inboxes.items():
        message = loot.ask(client_, inbox)
        assert isinstance(message, Masked)
        loot.masked[client_], acknowledged[client_] = message.words, message.acknowledgement
    survivors = set(range(30)) - partners
    finish(loot, survivors, sorted(survivors - {victim}), acknowledged)
    found = loot.sum_of([victim], {victim: partners})
    assert (found == loot.played.vectors[victim].tolist()) == leaks
    if not leaks:
        # Its neighbours refuse, the rest have signed: of its self-mask secret there are no shares.
        assert loot.refused == dict.fromkeys(sorted(asked), Reason.BAD_SEAL)
        assert not loot.shares[OWN][victim]
