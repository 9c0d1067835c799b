"""Randomness as a pure function of what it is for.

Every random choice in Mirage draws from a generator whose seed is `seed(run, purpose, replica, round, client)`.
Results therefore do not depend on how replicas are chunked, which backend trains them, how many workers there are,
the order of work, or where a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch


def seed(run: int, purpose: str, replica: int = 0, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed; distinct arguments give independent-looking seeds (BLAKE2b)."""
    text = f"{run}/{purpose}/{replica}/{round}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def from_seed(value: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on every bit of `value`.

    torch folds a CPU seed to 32 bits, and a study has enough lanes for two of those to meet; so the whole state of
    its Mersenne Twister is filled from the seed instead. A GPU's counter-based generator takes all 64 bits itself.
    """
    made = torch.Generator(device=device)
    if made.device.type != "cpu":
        return made.manual_seed(value)
    state = made.get_state()
    if len(state) != _STATE_BYTES:
        raise RuntimeError(f"torch {torch.__version__} stores its generator in another layout; report this")
    words = np.frombuffer(state.numpy(), dtype=np.uint64, offset=_WORDS_AT, count=_WORDS)
    words[:] = np.random.SeedSequence(value).generate_state(_WORDS, np.uint32)
    return made.set_state(state)


# The layout of a CPU generator's state in torch: a 24-byte head (its own seed, counters that say "draw a new block
# first" on a fresh generator), then the Twister's 624 words of 32 bits, each in a 64-bit place.
_STATE_BYTES, _WORDS_AT, _WORDS = 5056, 24, 624


def generator(
    run: int,
    purpose: str,
    replica: int = 0,
    round: int = 0,
    client: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """A fresh generator seeded by `seed(...)`. Choices are drawn on the CPU; only noise uses a GPU's own."""
    return from_seed(seed(run, purpose, replica, round, client), device)


class Generators(Sequence[torch.Generator]):
    """One generator a seed, made when it is first asked for: most rounds draw no noise, and a generator costs time."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds, self.device = seeds, device
        self._made: dict[int, torch.Generator] = {}

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Generator]: ...
    def __getitem__(self, index: int | slice) -> torch.Generator | list[torch.Generator]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError past the end, which ends an iteration
        if place not in self._made:
            self._made[place] = from_seed(self.seeds[place], self.device)
        return self._made[place]
