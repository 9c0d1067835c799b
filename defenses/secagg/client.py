"""A client of the protocol, as a state machine: each message of the server's gives one answer, or is refused.

Figure 4 of Bonawitz et al. 2017. What a client is sent has to fit what it was told of the round before it began
(`Parameters`, `Context`), and what it has seen in it. A refused message changes nothing. Each stage is passed once, so
that of the two secrets of any one client it gives away a share of one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from defenses.secagg import graph, keys, masks, messages, shamir, wire
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import (
    Advert,
    Announce,
    Check,
    Inbox,
    Masked,
    Message,
    Roster,
    Shares,
    Signatures,
    Survivors,
    Unmask,
)
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Reason, Rejected
from defenses.secagg.wire import Kind
from fl_core.errors import InputError

_ASSOCIATED = struct.Struct("<QII")

_AWAITED = {
    Stage.KEYS: Kind.ANNOUNCE,
    Stage.SHARES: Kind.ROSTER,
    Stage.MASKED: Kind.INBOX,
    Stage.CHECK: Kind.SURVIVORS,
}


class Client:
    """One client in one round.

    number: of the parameters' clients. vector: words modulo 2^bits [length], kept as it is until it has been masked.
    context: the round as this client knows it, with the hash of the model that it was sent itself. random: a source of
    secret bytes, `os.urandom` unless a run is to be repeated. identity, registry: where clients sign, its own Ed25519
    key and everyone's public ones, which it must have from elsewhere than this server. Raises InputError.

    A client must never take part twice in a round of one number: it signs one set of survivors for each.
    """

    def __init__(
        self,
        number: int,
        vector: Words,
        *,
        parameters: Parameters,
        context: Context,
        random: Callable[[int], bytes],
        identity: Ed25519PrivateKey | None = None,
        registry: Sequence[bytes] = (),
    ) -> None:
        if not 0 <= number < parameters.clients:
            raise InputError(f"client is {number}; clients are numbered from 0 to {parameters.clients - 1}")
        if context.parameters != parameters.digest:
            raise InputError("the context is of other parameters; make it by parameters.context(...)")
        check_vector(vector, parameters)
        if parameters.malicious and (
            identity is None or len(registry) != parameters.clients or registry[number] != keys.name_of(identity)
        ):
            raise InputError(f"client {number} needs its identity and the registry of all {parameters.clients}")
        self.number = number
        self.parameters = parameters
        self.context = context
        self.stage: Stage | None = Stage.KEYS  # what it sends next; None once it has said all
        self._vector: Words | None = vector
        self._random = random
        self._identity = identity if parameters.malicious else None
        self._registry = tuple(registry) if parameters.malicious else ()
        self._seeds: list[tuple[bytes, bool]] = []

    def answer(self, raw: bytes) -> bytes:
        """The answer to the server's next message. Raises Rejected, and is then as it was before."""
        got = messages.parse(raw, parameters=self.parameters, contexts=[self.context], registry=self._registry)
        if got.client != self.number:
            raise Rejected(Reason.UNKNOWN, f"a message for client {got.client}, not {self.number}")
        self._in_order(got.message)
        answer: Message
        stage: Stage | None
        match got.message:
            case Announce():
                answer, stage = self._advertise(got.message), Stage.SHARES
            case Roster():
                answer, stage = self._share(got.message), Stage.MASKED
            case Inbox():
                answer, stage = self._mask(got.message), Stage.CHECK if self.parameters.malicious else Stage.UNMASK
            case Survivors() if self.stage is Stage.CHECK:
                answer, stage = self._check(got.message), Stage.UNMASK
            case Survivors():
                self._take_survivors(got.message)
                answer, stage = self._unmask(), None
            case Signatures():
                self._verify_signatures(got.message)
                answer, stage = self._unmask(), None
            case _:
                raise Rejected(Reason.OUT_OF_ORDER, "a client's own kind of message")
        self.stage = stage
        return messages.encode(
            answer, parameters=self.parameters, context=self.context, client=self.number, identity=self._identity
        )

    def mask_seeds(self) -> list[tuple[bytes, bool]]:
        """The seeds of all masks on its vector, and whether each is subtracted; once it has sent the masked vector."""
        return list(self._seeds)

    def _in_order(self, message: Message) -> None:
        if self.stage is Stage.UNMASK:
            awaited: int = Kind.SIGNATURES if self.parameters.malicious else Kind.SURVIVORS
        else:
            awaited = _AWAITED[self.stage] if self.stage else Kind.UNMASK + 1
        if message.kind == awaited:
            return
        if isinstance(message, Survivors) and message.kind < awaited and message.members != self._survivors:
            raise Rejected(Reason.BOTH_SECRETS, "another set of survivors, after this client has answered for one")
        if message.kind < awaited and not message.kind.of_client:
            raise Rejected(Reason.REPEATED, f"a second {message.kind.name.lower()}")
        raise Rejected(Reason.OUT_OF_ORDER, f"{message.kind.name.lower()} is not what comes next")

    def _advertise(self, message: Announce) -> Advert:
        if message.parameters != self.parameters.encoded():
            weak = self.parameters.weakened(message.parameters)
            raise Rejected(Reason.THRESHOLD if weak else Reason.CONTEXT, "parameters other than agreed")
        if message.model != self.context.model:
            raise Rejected(Reason.CONTEXT, "a model other than this client's")
        self._share_key = keys.private_key(self._random(keys.KEY_BYTES))
        self._mask_secret = self._random(keys.KEY_BYTES)
        self._mask_key = keys.private_key(self._mask_secret)
        self._self_secret = self._random(keys.KEY_BYTES)
        self._advert = Advert(
            share_key=keys.public_key(self._share_key),
            mask_key=keys.public_key(self._mask_key),
            commitment=keys.commitment(self._self_secret, self.context, self.number),
        )
        return self._advert

    def _share(self, message: Roster) -> Shares:
        self._enough(message.members, "advertised keys")
        adverts = {self.number: self._advert} | self._read_adverts(message)
        leaves = dict(zip(message.members, message.leaves, strict=True)) if message.leaves else {}
        for client, advert in adverts.items():
            leaf = advert.leaf(client)
            if leaves.setdefault(client, leaf) != leaf:
                raise Rejected(Reason.INCONSISTENT, f"keys of client {client} that are not those of the roster")
        if set(leaves) != set(message.members):
            raise Rejected(Reason.GRAPH, "a roster without the keys of some of its members, or with others'")
        listed = [leaves[client] for client in message.members]
        digest = wire.roster_digest(message.members, listed, self._registry, self.parameters.clients)
        session = keys.session(self.context, digest)
        links = graph.arrange(session, message.members, self.parameters.neighbours)
        neighbours = links.neighbours(self.number)
        if neighbours != tuple(client for client, _ in message.adverts):
            raise Rejected(Reason.GRAPH, "neighbours other than the roster's own hash gives")
        agreed = {client: keys.agree(self._share_key, adverts[client].share_key) for client in neighbours}
        pairs = {client: keys.agree(self._mask_key, adverts[client].mask_key) for client in neighbours}
        dealt = self._deal([*neighbours, self.number])
        sealed = []
        for receiver in neighbours:
            key = keys.share_key(agreed[receiver], session, self.number, receiver)
            plain = b"".join(map(wire.write_share, dealt[receiver]))
            sealed.append((receiver, keys.encrypt(key, plain, self._associated(self.number, receiver))))
        self._members, self._session, self._graph = frozenset(message.members), session, links
        self._agreed, self._pairs, self._own = agreed, pairs, dealt[self.number]
        return Shares(sealed=tuple(sealed))

    def _deal(self, holders: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Each holder's shares of the mask key and of the self-mask secret."""
        points, threshold = [holder + 1 for holder in holders], self.parameters.threshold
        if threshold > len(points):
            raise Rejected(Reason.THRESHOLD, f"{len(points)} holders of shares for a threshold of {threshold}")
        of_key = shamir.deal(self._mask_secret, points, threshold, self._random)
        of_self = shamir.deal(self._self_secret, points, threshold, self._random)
        return dict(zip(holders, zip(of_key, of_self, strict=True), strict=True))

    def _read_adverts(self, message: Roster) -> dict[int, Advert]:
        """The neighbours' keys, their signatures verified, no key twice."""
        found = {}
        seen = {self._advert.share_key, self._advert.mask_key}
        for client, encoded in message.adverts:
            advert = Advert.read(memoryview(encoded)[: Advert.size], self.parameters)
            if self.parameters.malicious:
                text = messages.text(advert, parameters=self.parameters, context=self.context, client=client)
                keys.verify(self._registry[client], encoded[Advert.size :], text)
            if client == self.number or {advert.share_key, advert.mask_key} & seen:
                raise Rejected(Reason.REPEATED, f"a key of client {client} that another has, too")
            seen |= {advert.share_key, advert.mask_key}
            found[client] = advert
        return found

    def _mask(self, message: Inbox) -> Masked:
        self._enough(message.members, "dealt shares")
        if not self._members.issuperset(message.members):
            raise Rejected(Reason.UNKNOWN, "shares by someone who advertised no keys")
        senders = tuple(client for client, _ in message.sealed)
        dealt = frozenset(message.members)
        if senders != tuple(client for client in self._graph.neighbours(self.number) if client in dealt):
            raise Rejected(Reason.INCONSISTENT, "shares of others than the neighbours who are said to have dealt them")
        if len(senders) + 1 < self.parameters.threshold:
            raise Rejected(Reason.THRESHOLD, f"shares of {len(senders)} neighbours only")
        held = {self.number: self._own}
        for sender, sealed in message.sealed:
            key = keys.share_key(self._agreed[sender], self._session, sender, self.number)
            plain = keys.decrypt(key, sealed, self._associated(sender, self.number))
            cut = shamir.SHARE_BYTES
            held[sender] = wire.read_share(plain[:cut]), wire.read_share(plain[cut:])
        self._held, self._dealt = held, dealt
        self._seeds = [(keys.self_seed(self._self_secret, self._session, self.number), False)]
        for other in senders:
            seed = keys.pair_seed(self._pairs[other], self._session, (self.number, other))
            self._seeds.append((seed, self.number > other))
        assert self._vector is not None
        words = self._vector.copy()
        masks.add_all(words, self._seeds)
        masks.reduce(words, self.parameters.bits)
        self._vector, self._agreed, self._pairs = None, {}, {}
        signature = b""
        if self._identity and self.parameters.acknowledged:
            text = wire.acknowledged_text(self._session, self.number, message.members, self.parameters.clients)
            signature = keys.sign(self._identity, text)
        return Masked(words=words, acknowledgement=signature)

    def _check(self, message: Survivors) -> Check:
        self._take_survivors(message)
        return Check(digest=self._survivors_digest())

    def _take_survivors(self, message: Survivors) -> None:
        self._enough(message.members, "survived")
        survivors = frozenset(message.members)
        if not survivors <= self._dealt:
            raise Rejected(Reason.UNKNOWN, "a survivor who dealt no shares")
        if self.parameters.acknowledged:
            self._verify_acknowledgements(message, survivors)
        self._survivors = message.members

    def _verify_acknowledgements(self, message: Survivors, survivors: frozenset[int]) -> None:
        """Each neighbour whose shares this client is to give must have masked among the same clients as it has.

        A server that withholds shares could else have a vector masked with those alone whom it then drops. On the
        complete graph, where a client always masks with some who sign, it could not.
        """
        near = tuple(client for client in self._graph.neighbours(self.number) if client in survivors)
        if near != tuple(client for client, _ in message.acknowledgements):
            raise Rejected(Reason.INCONSISTENT, "acknowledgements of others than the surviving neighbours")
        for client, signature in message.acknowledgements:
            text = wire.acknowledged_text(self._session, client, self._dealt, self.parameters.clients)
            keys.verify(self._registry[client], signature, text)

    def _verify_signatures(self, message: Signatures) -> None:
        signers = [client for client, _ in message.signatures]
        if not set(signers) <= set(self._survivors):
            raise Rejected(Reason.UNKNOWN, "a signature by someone who did not survive")
        if len(signers) < self.parameters.quorum:
            raise Rejected(Reason.INCONSISTENT, f"{len(signers)} signatures, of {self.parameters.quorum} that it takes")
        check = Check(digest=self._survivors_digest())
        for client, signature in message.signatures:
            text = messages.text(check, parameters=self.parameters, context=self.context, client=client)
            keys.verify(self._registry[client], signature, text)

    def _unmask(self) -> Unmask:
        survivors = frozenset(self._survivors)
        shares = tuple(
            (owner, of_self if owner in survivors else of_key)
            for owner, (of_key, of_self) in sorted(self._held.items())
        )
        self._held = {}
        return Unmask(shares=shares)

    def _survivors_digest(self) -> bytes:
        return wire.survivors_digest(self._session, self._dealt, self._survivors, self.parameters.clients)

    def _enough(self, members: Sequence[int], what: str) -> None:
        """Refuse a set of clients that leaves this one out, is too small, or too thin somewhere on the ring."""
        if self.number not in members:
            raise Rejected(Reason.UNKNOWN, f"client {self.number} itself is not among those who {what}")
        if len(members) < self.parameters.quorum:
            raise Rejected(Reason.THRESHOLD, f"{len(members)} {what}, of {self.parameters.quorum} that it takes")
        if self.parameters.window and self.stage is not Stage.SHARES:
            self._thick(members, what)

    def _thick(self, members: Sequence[int], what: str) -> None:
        fewest = self._graph.fewest_in_a_row(frozenset(members))
        if fewest < self.parameters.window:
            raise Rejected(Reason.GRAPH, f"{fewest} in a row {what}, of {self.parameters.window} that it takes")

    def _associated(self, sender: int, receiver: int) -> bytes:
        return self.context.digest + _ASSOCIATED.pack(self.context.round, sender, receiver)


def check_vector(vector: Words, parameters: Parameters) -> None:
    """Raise InputError unless `vector` is of words modulo 2^bits [length]."""
    word = np.dtype(masks.word_type(parameters.bits))
    if vector.dtype != word or vector.shape != (parameters.length,):
        raise InputError(
            f"a vector is {vector.dtype}{list(vector.shape)}; it must be {word}[{parameters.length}], "
            f"words of {parameters.bits} bits"
        )
    if parameters.bits < 8 * word.itemsize and int(vector.max()) >> parameters.bits:
        raise InputError(f"a vector holds {int(vector.max())}; words modulo 2^{parameters.bits} are smaller")
