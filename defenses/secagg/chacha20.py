"""ChaCha20 (RFC 8439) as tensor work: many keys' streams at once, on whatever device the keys are.

All words are int32, whose sums and shifts to the left wrap around as unsigned ones do; a shift to the right drags the
sign along, which is masked off. OpenSSL's, behind `masks.add`, is faster on a CPU; this one is for GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

KEY_WORDS = 8
BLOCK_WORDS = 16

_CONSTANTS = tuple(int.from_bytes(b"expand 32-byte k"[at : at + 4], "little") for at in range(0, 16, 4))
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def key_words(keys: Sequence[bytes], device: torch.device | str = "cpu") -> Tensor:
    """Keys of 32 bytes as little-endian words: int32 [keys, 8]."""
    words = np.frombuffer(b"".join(keys), dtype="<u4").astype(np.uint32).view(np.int32)
    return torch.from_numpy(words.reshape(len(keys), KEY_WORDS)).to(device)


def stream(keys: Tensor, blocks: int, first: int = 0, nonce: Sequence[int] = (0, 0, 0)) -> Tensor:
    """The words of `blocks` blocks from the counter `first` on: int32 [keys, 16 * blocks], for keys int32 [keys, 8].

    `nonce` has three words. Takes 34 words of memory a block.
    """
    shape = (len(keys), blocks)
    counter = torch.arange(first, first + blocks, device=keys.device).to(torch.int32)
    state = torch.empty(BLOCK_WORDS, *shape, dtype=torch.int32, device=keys.device)
    for place, word in enumerate(_CONSTANTS):
        state[place] = _as_int32(word)
    state[4:12] = keys.T[:, :, None]
    state[12] = counter
    for place, word in enumerate(nonce):
        state[13 + place] = _as_int32(word)
    mixed, scratch = state.clone(), torch.empty(shape, dtype=torch.int32, device=keys.device)
    rows = list(mixed)
    for _ in range(10):
        for a, b, c, d in _COLUMNS + _DIAGONALS:
            _quarter_round(rows[a], rows[b], rows[c], rows[d], scratch)
    return mixed.add_(state).permute(1, 2, 0).reshape(len(keys), BLOCK_WORDS * blocks).contiguous()


def _quarter_round(a: Tensor, b: Tensor, c: Tensor, d: Tensor, scratch: Tensor) -> None:
    """RFC 8439, section 2.1, in place."""
    for left, right, other, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        left.add_(right)
        other.bitwise_xor_(left)
        torch.bitwise_right_shift(other, 32 - turn, out=scratch)
        scratch.bitwise_and_((1 << turn) - 1)
        other.bitwise_left_shift_(turn).bitwise_or_(scratch)


def _as_int32(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
