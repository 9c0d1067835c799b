"""What every test shares: one thread, and randomness that is the same on every machine and every day."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("mirage", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("mirage")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Torch's global generator starts anew in every test, so that no test depends on which ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
