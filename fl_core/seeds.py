"""Randomness as a pure function of what it is for.

Every random choice in Mirage draws from a generator whose seed is `seed(run, purpose, replica, round, client)`.
Results therefore do not depend on how replicas are chunked, which backend trains them, how many workers there are,
the order of work, or where a run was interrupted.
"""

from __future__ import annotations

import hashlib

import torch


def seed(run: int, purpose: str, replica: int = 0, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed; distinct arguments give independent-looking seeds (BLAKE2b, so no collisions in practice)."""
    text = f"{run}/{purpose}/{replica}/{round}/{client}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(
    run: int,
    purpose: str,
    replica: int = 0,
    round: int = 0,
    client: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """A fresh generator on `device`, seeded by `seed(...)`. Choices are drawn on the CPU; only noise uses a GPU's own."""
    return torch.Generator(device=device).manual_seed(seed(run, purpose, replica, round, client))
