"""A whole cohort's masks as tensor work, for clients that a simulation trains as lanes.

The keys are those that the protocol's own clients make of the same random bytes, and so are the masks: what `masked`
and `unmasked` return is what `protocol.aggregate` sends and finds, bit for bit. What is left out is messages, and the
way of a secret into shares and back, which end where they began. A mask that two lanes of a tile share is expanded
once; never are more than a few masks in memory.

Source: Bonawitz et al. 2017, with the graph of Bell et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from defenses.secagg import keys, masks
from defenses.secagg.chacha20 import BLOCK_WORDS, key_words, stream
from defenses.secagg.graph import arrange
from defenses.secagg.keys import Context
from defenses.secagg.messages import Advert
from defenses.secagg.parameters import Parameters
from defenses.secagg.protocol import identities, seeded
from defenses.secagg.refusals import Aborted
from defenses.secagg.wire import roster_digest

Signs = Mapping[int, int]
"""Which rows a mask goes on, and with which sign."""

MASK_BYTES = 1 << 28
"""Of a GPU's memory, about, for the masks that are expanded at once."""

BLOCK_BYTES = 4 * BLOCK_WORDS
_BYTES_A_BLOCK = 5 * BLOCK_BYTES  # its state before and after, the mask, and once more where it goes on


class CohortMasks:
    """The masks of one round's clients, numbered from 0, and what takes them off the survivors' sum.

    `random` is the byte source that `protocol.aggregate` would be given. Vectors are words modulo 2^bits (int32 for up
    to 32 bits, else int64) on `device`; what is handed out is reduced.
    """

    def __init__(
        self,
        parameters: Parameters,
        context: Context,
        random: Callable[[int], bytes],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parameters, self.device = parameters, torch.device(device)
        members = range(parameters.clients)
        _, registry = identities(parameters.clients, random) if parameters.malicious else ([], ())
        sources = [seeded(random(keys.KEY_BYTES)) for _ in members]
        # In the order in which a client draws them: for its share key, its mask key, and its own mask.
        secrets = [[source(keys.KEY_BYTES) for _ in range(3)] for source in sources]
        self._own_secrets = [own for _, _, own in secrets]
        self._private = [keys.private_key(mask) for _, mask, _ in secrets]
        self._public = [keys.public_key(private) for private in self._private]
        leaves = [
            Advert(
                share_key=keys.public_key(keys.private_key(shares)),
                mask_key=public,
                commitment=keys.commitment(own, context, client),
            ).leaf(client)
            for client, (public, (shares, _, own)) in enumerate(zip(self._public, secrets, strict=True))
        ]
        digest = roster_digest(members, leaves, registry, parameters.clients)
        self._session = keys.session(context, digest)
        self.graph = arrange(self._session, members, parameters.neighbours)
        self._pair_seeds: dict[tuple[int, int], bytes] = {}

    def masked(self, clients: Sequence[int], vectors: Tensor) -> Tensor:
        """What the server receives from `clients` whose vectors are these [clients, d]."""
        found = vectors.clone()
        self._add(found, self._masks_of(clients))
        return self._reduced(found)

    def unmasked(self, total: Tensor, survivors: frozenset[int]) -> Tensor:
        """The sum [d] of the survivors' vectors, from that of their masked ones.

        The server takes off every survivor's own mask, and those that it shares with clients who are lost. Raises
        Aborted where the protocol would: too few are left to recover somebody's secret.
        """
        self._check(survivors)
        found = total.clone()[None]
        self._add(found, self._left_on(survivors))
        return self._reduced(found)[0]

    def _check(self, survivors: frozenset[int]) -> None:
        rules, missing = self.parameters, f"{len(survivors)} of {self.parameters.clients} clients are left"
        if len(survivors) < rules.quorum:
            raise Aborted(f"{missing}, of {rules.quorum} that it takes")
        for client in range(rules.clients):
            near = len(survivors.intersection(self.graph.neighbours(client)))
            holders = near + (client in survivors)
            if holders < rules.threshold and (client in survivors or near):
                raise Aborted(f"{missing}, and {holders} shares of a secret of client {client}")
        if rules.window and self.graph.fewest_in_a_row(survivors) < rules.window:
            raise Aborted(f"{missing}, and too few of some neighbourhood")

    def _masks_of(self, clients: Sequence[int]) -> Iterator[tuple[bytes, Signs]]:
        """Every mask of some clients, once, with the rows of those that wear it."""
        rows = {client: row for row, client in enumerate(clients)}
        for client, row in rows.items():
            yield self._own(client), {row: 1}
            for other in self.graph.neighbours(client):
                if other not in rows:
                    yield self._shared(client, other), {row: _sign(client, other)}
                elif client < other:
                    yield self._shared(client, other), {row: _sign(client, other), rows[other]: _sign(other, client)}

    def _left_on(self, survivors: frozenset[int]) -> Iterator[tuple[bytes, Signs]]:
        for client in sorted(survivors):
            yield self._own(client), {0: -1}
            for other in self.graph.neighbours(client):
                if other not in survivors:
                    yield self._shared(client, other), {0: -_sign(client, other)}

    def _own(self, client: int) -> bytes:
        return keys.self_seed(self._own_secrets[client], self._session, client)

    def _shared(self, client: int, other: int) -> bytes:
        pair = min(client, other), max(client, other)
        if pair not in self._pair_seeds:
            agreed = keys.agree(self._private[client], self._public[other])
            self._pair_seeds[pair] = keys.pair_seed(agreed, self._session, pair)
        return self._pair_seeds[pair]

    def _add(self, rows: Tensor, found: Iterator[tuple[bytes, Signs]]) -> None:
        if rows.device.type == "cpu":
            add_with_openssl(rows, found)
        else:
            add_as_tensors(rows, found)

    def _reduced(self, words: Tensor) -> Tensor:
        bits = self.parameters.bits
        return words if bits == 32 else words.bitwise_and_((1 << bits) - 1)


def add_with_openssl(rows: Tensor, found: Iterator[tuple[bytes, Signs]]) -> None:
    """Add masks to rows [rows, d] on the CPU, in place, modulo 2^32 or 2^64."""
    words = rows.numpy().view(np.uint32 if rows.dtype == torch.int32 else np.uint64)
    for seed, signs in found:
        if len(signs) == 1:
            ((row, sign),) = signs.items()
            masks.add(words[row], seed, subtract=sign < 0)
            continue
        mask = np.zeros_like(words[0])
        masks.add(mask, seed)
        for row, sign in signs.items():
            (np.add if sign > 0 else np.subtract)(words[row], mask, out=words[row])


def add_as_tensors(rows: Tensor, found: Iterator[tuple[bytes, Signs]], memory: int = MASK_BYTES) -> None:
    """The same on any device: many masks at once, and of long ones a part at a time, in about `memory` bytes."""
    length, size = rows.shape[1], rows.element_size()
    blocks = -(-length * size // BLOCK_BYTES)
    at_once = max(1, memory // _BYTES_A_BLOCK)  # of all masks together
    part = min(blocks, at_once)
    words = BLOCK_BYTES // size
    while batch := list(islice(found, max(1, at_once // part))):
        seeds = key_words([seed for seed, _ in batch], rows.device)
        places = [
            [(mask, row) for mask, (_, signs) in enumerate(batch) for row, sign in signs.items() if sign == wanted]
            for wanted in (1, -1)
        ]
        for first in range(0, blocks, part):
            span = rows[:, first * words : (first + part) * words]
            mask = stream(seeds, min(part, blocks - first), first).view(rows.dtype)[:, : span.shape[1]]
            for sign, worn in zip((1, -1), places, strict=True):
                if worn:
                    which, where = torch.tensor(worn, device=rows.device).T
                    span.index_add_(0, where, mask[which], alpha=sign)


def _sign(client: int, other: int) -> int:
    """The one with the lower number adds the mask that two clients share, the other subtracts it."""
    return 1 if client < other else -1
