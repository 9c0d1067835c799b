"""The server of the protocol, as a state machine: it takes the messages of a stage, then closes it.

Figure 4 of Bonawitz et al. 2017. It follows the protocol, and is not fooled by clients that do not: a message that does
not fit is refused and leaves no trace, and every secret that it recovers is compared with what its owner had published,
so that a false share can end the round but not change the sum. It keeps one vector, however many clients there are.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import numpy as np

from defenses.secagg import graph, keys, masks, messages, shamir, wire
from defenses.secagg.graph import Graph
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import (
    Advert,
    Announce,
    Check,
    Inbox,
    Masked,
    Message,
    Received,
    Roster,
    Shares,
    Signatures,
    Survivors,
    Unmask,
)
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.refusals import Aborted, Reason, Rejected
from defenses.secagg.wire import Kind
from fl_core.errors import InputError

_AWAITED = {
    Stage.KEYS: Kind.ADVERT,
    Stage.SHARES: Kind.SHARES,
    Stage.MASKED: Kind.MASKED,
    Stage.CHECK: Kind.CHECK,
    Stage.UNMASK: Kind.UNMASK,
}


class Outgoing(Mapping[int, bytes]):
    """The server's next message to each client that is still there, encoded when it is looked up."""

    def __init__(self, clients: Iterable[int], encoded: Callable[[int], bytes]) -> None:
        self._clients = dict.fromkeys(clients)
        self._encoded = encoded

    def __getitem__(self, client: int) -> bytes:
        self._clients[client]  # a KeyError for those who are gone
        return self._encoded(client)

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


class Server:
    """The server of one round.

    contexts: the round's; or one for each client, for a server that has sent out different models (their keys will not
    fit together, and the round aborts). registry: the clients' Ed25519 identities, where they sign. Raises InputError.

    `open` gives the first messages; then, stage by stage, `receive` takes what clients answer and `close` ends the
    stage with the next messages, or with Aborted once too few are left. After the last one `total` is the sum of the
    `survivors`' vectors modulo 2^bits.
    """

    def __init__(
        self, parameters: Parameters, contexts: Context | Sequence[Context], registry: Sequence[bytes] = ()
    ) -> None:
        self.contexts = [contexts] if isinstance(contexts, Context) else list(contexts)
        if len(self.contexts) not in (1, parameters.clients):
            raise InputError(
                f"{len(self.contexts)} contexts; give one, or one for each of {parameters.clients} clients"
            )
        if any(context.parameters != parameters.digest for context in self.contexts):
            raise InputError("a context is of other parameters; make it by parameters.context(...)")
        if parameters.malicious and len(registry) != parameters.clients:
            raise InputError(f"the registry has {len(registry)} identities; it must have {parameters.clients}")
        self.parameters = parameters
        self.registry = tuple(registry) if parameters.malicious else ()
        self.stage: Stage | None = Stage.KEYS  # whose messages it takes; None when the round is over
        self.total: Words | None = None
        self.survivors: tuple[int, ...] = ()
        self._sum: Words = np.zeros(parameters.length, dtype=masks.word_type(parameters.bits))
        self._present: Mapping[int, object] = dict.fromkeys(range(parameters.clients))  # who has passed the last stage
        self._adverts: dict[int, Advert] = {}
        self._listings: dict[int, bytes] = {}  # each Advert as a roster has it: its body, and signature if any
        self._public: set[bytes] = set()
        self._sessions: dict[bytes, tuple[bytes, Graph]] = {}  # by the context's digest
        self._leaves: tuple[bytes, ...] = ()
        self._shares: dict[int, dict[int, bytes]] = {}  # by sender and receiver
        self._dealt: Mapping[int, object] = {}
        self._masked: dict[int, bytes] = {}  # with the acknowledgement of each
        self._signatures: dict[int, bytes] = {}
        self._unmasking: dict[int, dict[int, int]] = {}

    @property
    def taken(self) -> tuple[int, ...]:
        """Whose messages of this stage have been taken."""
        return tuple(sorted(self._came(self.stage))) if self.stage else ()

    def open(self) -> Outgoing:
        """The first message, to each client."""
        return self._outgoing(self._announce)

    def receive(self, raw: bytes | memoryview, sender: int | None = None) -> Received:
        """Take a message into this stage. Raises Rejected, and is then as it was before.

        sender: who is known to be at the other end of the line, if that is known.
        """
        got = messages.parse(raw, parameters=self.parameters, contexts=self.contexts, registry=self.registry)
        client, message, kind = got.client, got.message, got.message.kind
        if sender is not None and client != sender:
            raise Rejected(Reason.UNKNOWN, f"a message by client {client} from client {sender}")
        if self.stage is None or kind != _AWAITED[self.stage]:
            raise Rejected(Reason.OUT_OF_ORDER, f"{kind.name.lower()} is not what comes now")
        if client not in self._present:
            raise Rejected(Reason.OUT_OF_ORDER, f"client {client} has dropped out")
        if client in self._came(self.stage):
            raise Rejected(Reason.REPEATED, f"a second {kind.name.lower()} by client {client}")
        match message:
            case Advert():
                self._take_advert(client, message, got.seal)
            case Shares():
                self._listed(message.sealed, self._graph(client).neighbours(client))
                self._shares[client] = dict(message.sealed)
            case Masked():
                self._take_masked(client, message)
            case Check():
                clients, survivors = self.parameters.clients, self.survivors
                digest = wire.survivors_digest(self._session(client), self._dealt, survivors, clients)
                if message.digest != digest:
                    raise Rejected(Reason.INCONSISTENT, "a signature for other survivors")
                self._signatures[client] = got.seal
            case Unmask():
                self._listed(message.shares, self._holders(client))
                self._unmasking[client] = dict(message.shares)
        return got

    def close(self) -> Outgoing:
        """End the stage: the next message to each client that is still there; to none after the last stage.

        Raises Aborted when too few are left, or when shares are false; then the round is over.
        """
        stage, self.stage = self.stage, None
        if stage is None:
            raise Aborted("the round is over")
        came = sorted(self._came(stage))
        if stage is Stage.UNMASK:
            self.total = self._unmasked()
            self._present = {}
            return self._outgoing(self._announce)
        if len(came) < self.parameters.quorum:
            raise Aborted(
                f"{len(came)} clients are left at the stage {stage}, of {self.parameters.quorum} that it takes"
            )
        self._present = dict.fromkeys(came)
        self.stage = self.parameters.stages[self.parameters.stages.index(stage) + 1]
        match stage:
            case Stage.KEYS:
                self._meet()
                return self._outgoing(self._roster)
            case Stage.SHARES:
                self._dealt = self._present
                return self._outgoing(self._inbox)
            case Stage.MASKED:
                self.survivors = tuple(came)
                return self._outgoing(self._told_survivors)
            case Stage.CHECK:
                listed = Signatures(signatures=tuple((client, self._signatures[client]) for client in came))
                return self._outgoing(lambda _: listed)

    def _came(self, stage: Stage) -> Mapping[int, object]:
        """Whose messages of a stage have been taken."""
        taken: dict[Stage, Mapping[int, object]] = {
            Stage.KEYS: self._adverts,
            Stage.SHARES: self._shares,
            Stage.MASKED: self._masked,
            Stage.CHECK: self._signatures,
            Stage.UNMASK: self._unmasking,
        }
        return taken[stage]

    # What is taken.

    def _take_advert(self, client: int, advert: Advert, seal: bytes) -> None:
        public = {advert.share_key, advert.mask_key}
        if len(public) < 2 or public & self._public:
            raise Rejected(Reason.REPEATED, f"a key of client {client} that is another's, too")
        for key in public:
            keys.check_public(key)
        self._public |= public
        self._adverts[client] = advert
        signature = seal if self.parameters.malicious else b""
        self._listings[client] = b"".join([*advert.body(self.parameters), signature])

    def _take_masked(self, client: int, message: Masked) -> None:
        if self.parameters.acknowledged:
            text = wire.acknowledged_text(self._session(client), client, self._dealt, self.parameters.clients)
            keys.verify(self.registry[client], message.acknowledgement, text)
        self._sum += message.words
        self._masked[client] = message.acknowledgement

    def _listed(self, entries: Sequence[tuple[int, object]], expected: tuple[int, ...]) -> None:
        if tuple(client for client, _ in entries) != expected:
            raise Rejected(Reason.INCONSISTENT, "shares of or for others than the neighbours")

    # What is sent.

    def _outgoing(self, make: Callable[[int], Message]) -> Outgoing:
        def encoded(client: int) -> bytes:
            context = self._context(client)
            return messages.encode(make(client), parameters=self.parameters, context=context, client=client)

        return Outgoing(self._present, encoded)

    def _announce(self, client: int) -> Announce:
        return Announce(parameters=self.parameters.encoded(), model=self._context(client).model)

    def _meet(self) -> None:
        """Make the session of each context out of all public keys, and its graph."""
        members = tuple(self._present)
        leaves = [self._adverts[client].leaf(client) for client in members]
        digest = wire.roster_digest(members, leaves, self.registry, self.parameters.clients)
        self._leaves = tuple(leaves) if self.parameters.neighbours is not None else ()
        for context in self.contexts:
            session = keys.session(context, digest)
            self._sessions[context.digest] = session, graph.arrange(session, members, self.parameters.neighbours)

    def _roster(self, client: int) -> Roster:
        adverts = tuple((other, self._listings[other]) for other in self._graph(client).neighbours(client))
        return Roster(members=tuple(self._present), leaves=self._leaves, adverts=adverts)

    def _inbox(self, client: int) -> Inbox:
        senders = [sender for sender in self._near(client, self._dealt) if client in self._shares[sender]]
        return Inbox(
            members=tuple(self._dealt), sealed=tuple((sender, self._shares[sender][client]) for sender in senders)
        )

    def _told_survivors(self, client: int) -> Survivors:
        if not self.parameters.acknowledged:
            return Survivors(members=self.survivors)
        near = self._near(client, self._masked)
        return Survivors(members=self.survivors, acknowledgements=tuple((other, self._masked[other]) for other in near))

    # What is recovered.

    def _unmasked(self) -> Words:
        """Take the masks off the sum: the survivors' own, and those that they share with clients that dropped out."""
        total = self._sum
        lost = [client for client in self._dealt if client not in self._masked and self._near(client, self._masked)]
        secrets = self._recovered([*self.survivors, *lost])
        seeds: list[tuple[bytes, bool]] = []
        for client in self.survivors:
            if keys.commitment(secrets[client], self._context(client), client) != self._adverts[client].commitment:
                raise Aborted(f"the shares of client {client}'s own mask are not what it had committed to")
            seeds.append((keys.self_seed(secrets[client], self._session(client), client), True))
        for client in lost:
            private = keys.private_key(secrets[client])
            if keys.public_key(private) != self._adverts[client].mask_key:
                raise Aborted(f"the shares of client {client}'s key are not of the key that it had advertised")
            for other in self._near(client, self._masked):
                agreed = keys.agree(private, self._adverts[other].mask_key)
                # The lower of the two had added it; what is left of it is the survivor's.
                seeds.append((keys.pair_seed(agreed, self._session(client), (client, other)), other < client))
        masks.add_all(total, seeds)
        masks.reduce(total, self.parameters.bits)
        return total

    def _recovered(self, owners: Sequence[int]) -> dict[int, bytes]:
        """The secret of each owner that the survivors have given shares of, from as many as it takes."""
        threshold = self.parameters.threshold
        holding = {}
        for owner in owners:
            holders = tuple(holder for holder in self._holders(owner) if holder in self._unmasking)[:threshold]
            if len(holders) < threshold:
                raise Aborted(f"{len(holders)} shares of a secret of client {owner}, of {threshold} that it takes")
            holding[owner] = holders
        weights: dict[tuple[int, ...], list[int]] = {}
        secrets = {}
        for owner, holders in holding.items():
            if holders not in weights:
                weights[holders] = shamir.weights([holder + 1 for holder in holders])
            try:
                secrets[owner] = shamir.recover(
                    [self._unmasking[holder][owner] for holder in holders], weights[holders]
                )
            except Rejected as refusal:
                raise Aborted(f"client {owner}: {refusal.detail}") from None
        return secrets

    # Who and where.

    def _context(self, client: int) -> Context:
        return self.contexts[client] if len(self.contexts) > 1 else self.contexts[0]

    def _session(self, client: int) -> bytes:
        return self._sessions[self._context(client).digest][0]

    def _graph(self, client: int) -> Graph:
        return self._sessions[self._context(client).digest][1]

    def _holders(self, owner: int) -> tuple[int, ...]:
        """Those who hold shares of its secrets; the same ones as those of whose secrets it holds shares."""
        return tuple(sorted((owner, *self._near(owner, self._dealt))))

    def _near(self, client: int, among: Container[int]) -> tuple[int, ...]:
        return tuple(other for other in self._graph(client).neighbours(client) if other in among)
