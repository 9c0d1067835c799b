"""A server that tells some clients that the victim has dropped out, and the others that it has not.

Bonawitz et al. 2017, section 6: a client gives away a share of the mask key of who dropped out, and of the self mask of
who survived. Told two stories, the cohort gives away both of the victim's secrets, and with them its vector, unless the
threshold leaves no two groups that are large enough, or the clients first sign what they were told to one another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from defenses.secagg import keys, masks, messages, shamir, wire
from defenses.secagg.client import Client
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import Advert, Check, Masked, Signatures, Survivors, Unmask
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import identities, seeded
from defenses.secagg.refusals import Rejected
from defenses.secagg.server import Server


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What the server has of the `victim`'s vector [length], None where it lacks shares; and who refused to go on."""

    vector: Words | None
    refusals: Mapping[int, Rejected]
    self_shares: int
    key_shares: int


def tell(
    vectors: Sequence[Words],
    *,
    victim: int,
    parameters: Parameters,
    context: Context,
    believers: Collection[int],
    random: Callable[[int], bytes],
) -> Ending:
    """Play a round on the complete graph by the rules up to the masked vectors; then tell two stories.

    The victim and the `believers` hear that everyone survived, the rest that the victim did not. In the malicious
    variant the server then hands each client the signatures of those who heard the same.
    """
    clients = range(parameters.clients)
    signers, registry = identities(len(clients), random) if parameters.malicious else ([None] * len(clients), ())
    members = [
        Client(
            client,
            vectors[client],
            parameters=parameters,
            context=context,
            random=seeded(random(keys.KEY_BYTES)),
            identity=signers[client],
            registry=registry,
        )
        for client in clients
    ]
    server = Server(parameters, context, registry)
    adverts: dict[int, Advert] = {}
    masked: dict[int, Words] = {}
    outgoing = server.open()
    for stage in (Stage.KEYS, Stage.SHARES, Stage.MASKED):
        for client, raw in outgoing.items():
            message = server.receive(members[client].answer(raw), sender=client).message
            if isinstance(message, Advert):
                adverts[client] = message
            elif isinstance(message, Masked):
                masked[client] = message.words
        if stage is not Stage.MASKED:
            outgoing = server.close()

    refusals: dict[int, Rejected] = {}

    def ask(client: int, message: Survivors | Signatures) -> messages.Received | None:
        raw = messages.encode(message, parameters=parameters, context=context, client=client)
        try:
            answer = members[client].answer(raw)
        except Rejected as refusal:
            refusals[client] = refusal
            return None
        return messages.parse(answer, parameters=parameters, contexts=[context], registry=registry)

    heard = {client: client == victim or client in believers for client in clients}
    stories = {
        True: Survivors(members=tuple(clients)),
        False: Survivors(members=tuple(client for client in clients if client != victim)),
    }
    answers = {client: ask(client, stories[heard[client]]) for client in clients}
    if parameters.malicious:
        seals = {client: got.seal for client, got in answers.items() if got and isinstance(got.message, Check)}
        alike = {story: tuple((one, seals[one]) for one in sorted(seals) if heard[one] == story) for story in stories}
        answers = {client: ask(client, Signatures(signatures=alike[heard[client]])) for client in seals}
    shares: dict[bool, dict[int, int]] = {True: {}, False: {}}
    for client, got in answers.items():
        if got and isinstance(got.message, Unmask):
            shares[heard[client]][client] = dict(got.message.shares)[victim]
    vector = None
    if min(map(len, shares.values())) >= parameters.threshold:
        leaves = [adverts[client].leaf(client) for client in clients]
        session = keys.session(context, wire.roster_digest(tuple(clients), leaves, registry, len(clients)))
        vector = _unmasked(masked[victim], victim, shares, adverts, session, parameters)
    return Ending(vector=vector, refusals=refusals, self_shares=len(shares[True]), key_shares=len(shares[False]))


def _unmasked(
    words: Words,
    victim: int,
    shares: Mapping[bool, Mapping[int, int]],
    adverts: Mapping[int, Advert],
    session: bytes,
    parameters: Parameters,
) -> Words:
    """Take the victim's own mask off its vector, and those that it shares with all others."""
    secret = {story: _secret(held, parameters.threshold) for story, held in shares.items()}
    found = words.copy()
    masks.add(found, keys.self_seed(secret[True], session, victim), subtract=True)
    private = keys.private_key(secret[False])
    for other, advert in adverts.items():
        if other != victim:
            seed = keys.pair_seed(keys.agree(private, advert.mask_key), session, (victim, other))
            masks.add(found, seed, subtract=victim < other)  # the lower of the two had added it
    masks.reduce(found, parameters.bits)
    return found


def _secret(held: Mapping[int, int], threshold: int) -> bytes:
    holders = sorted(held)[:threshold]
    return shamir.recover([held[one] for one in holders], shamir.weights([one + 1 for one in holders]))
