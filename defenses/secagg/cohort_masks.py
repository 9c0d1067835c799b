"""A whole cohort's masks as tensor work, for clients that a simulation trains as lanes.

The keys are those that the protocol's own clients make of the same random bytes, and so are the masks: what `masked`
and `unmasked` return is what `protocol.aggregate` sends and finds, bit for bit. What is left out is messages, and the
way of a secret into shares and back, which end where they began. A mask that two lanes of a tile share is expanded
once; never are more than a few masks in memory.

Source: Bonawitz et al. 2017, with the graph of Bell et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from defenses.secagg import keys, masks
from defenses.secagg.chacha20 import BLOCK_WORDS, key_words, stream
from defenses.secagg.graph import arrange
from defenses.secagg.keys import Context
from defenses.secagg.parameters import Parameters

Signs = Mapping[int, int]
"""Which rows a mask goes on, and with which sign."""

MASK_BYTES = 1 << 28
"""Of a GPU's memory, about, for the masks that are expanded at once."""


class CohortMasks:
    """The masks of one round's clients, numbered from 0, and what takes them off the survivors' sum.

    `random` gives the clients' secret bytes, in the order of `protocol.aggregate`. Vectors are words modulo 2^bits
    (int32 for up to 32 bits, else int64) on `device`; words are reduced wherever they are handed out.
    """

    def __init__(
        self,
        parameters: Parameters,
        context: Context,
        random: Callable[[int], bytes],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parameters, self.device = parameters, torch.device(device)
        self._pairs: dict[tuple[int, int], bytes] = {}

    def masked(self, clients: Sequence[int], vectors: Tensor) -> Tensor:
        """What the server receives from `clients` whose vectors are these [clients, d]."""
        found = vectors.clone()
        self._add(found, self._masks_of(clients))
        return self._reduced(found)

    def unmasked(self, total: Tensor, survivors: Set[int]) -> Tensor:
        """The sum [d] of the survivors' vectors, from that of their masked ones.

        The server takes off every survivor's own mask, and those that it shares with clients who are lost.
        """
        found = total.clone()[None]
        self._add(found, self._left_on(survivors))
        return self._reduced(found)[0]

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

    def _left_on(self, survivors: Set[int]) -> Iterator[tuple[bytes, Signs]]:
        for client in sorted(survivors):
            yield self._own(client), {0: -1}
            for other in self.graph.neighbours(client):
                if other not in survivors:
                    yield self._shared(client, other), {0: -_sign(client, other)}

    def _add(self, rows: Tensor, found: Iterator[tuple[bytes, Signs]]) -> None:
        if rows.device.type == "cpu":
            add_with_openssl(rows, found)
        else:
            add_as_tensors(rows, found)

    def _reduced(self, words: Tensor) -> Tensor:
        return words.bitwise_and_((1 << self.parameters.bits) - 1) if self.parameters.bits not in (32, 64) else words


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
    """The same on any device, many masks and a part of them at a time, so that they take some `memory` bytes."""
