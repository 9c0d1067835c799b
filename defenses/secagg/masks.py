"""Masks: a 256-bit seed stretched to as many words modulo 2^bits as a vector has.

The stream is ChaCha20's (RFC 8439) with the whole seed as the key, nonce 0 and counter 0: a seed is used for one mask
only, so no nonce is needed to keep two streams apart. Words are little-endian, 32 bits wide for moduli up to 2^32 and
64 bits up to 2^62; as 2^bits divides the word's own modulus, masks are added and taken off in whole words that wrap
around, and reduced once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray

from fl_core.errors import check_number

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

SEED_BYTES = 32
LARGEST_BITS = 62

_CHUNK = 1 << 17  # bytes of the stream at a time: they stay in the cache until they are added
_ZEROS = memoryview(bytes(_CHUNK))
_LONGEST = 1 << 38  # bytes until ChaCha20's counter of 32 bits starts anew


def word_type(bits: int) -> type[np.uint32] | type[np.uint64]:
    """The words that hold numbers modulo 2^bits: uint32 for 1 to 32 bits, uint64 for 33 to 62. Raises InputError."""
    check_number("bits", bits, minimum=1, maximum=LARGEST_BITS, integer=True)
    return np.uint32 if bits <= 32 else np.uint64


def reduce(words: Words, bits: int) -> None:
    """Take `words` modulo 2^bits, in place."""
    words &= words.dtype.type((1 << bits) - 1)


def expand(seed: bytes, length: int, bits: int) -> Words:
    """The mask of a seed of 32 bytes: `length` words, uniform modulo 2^bits, a function of the three alone.

    uint32 for bits up to 32, uint64 for up to 62. A longer mask begins with a shorter one's words; one for fewer bits
    is one for more bits reduced, as long as both are of one word type.
    """
    mask: Words = np.zeros(length, dtype=word_type(bits))
    add(mask, seed)
    reduce(mask, bits)
    return mask


def add(words: Words, seed: bytes, *, subtract: bool = False) -> None:
    """Add a seed's mask to `words` in place, or subtract it; see `add_all`."""
    add_all(words, [(seed, subtract)])


def add_all(words: Words, seeds: Sequence[tuple[bytes, bool]]) -> None:
    """Add the masks of all `seeds` to `words` in place, or subtract those that say so, modulo 2^32 or 2^64 as the type
    of the words has it.

    Nothing of the vector's length is allocated, and each part of it is fetched from memory once. `reduce` the words
    when all their masks are on.
    """
    if words.nbytes > _LONGEST:
        raise ValueError(f"a mask of {words.nbytes} bytes repeats itself; the longest has {_LONGEST}")
    streams = [(_stream(seed), np.subtract if subtract else np.add) for seed, subtract in seeds]
    scratch = np.empty(min(_CHUNK, words.nbytes) // words.itemsize, dtype=words.dtype.newbyteorder("<"))
    memory = scratch.data.cast("B")
    for start in range(0, len(words), max(1, len(scratch))):
        part = words[start : start + len(scratch)]
        zeros, key_stream, mask = _ZEROS[: part.nbytes], memory[: part.nbytes], scratch[: len(part)]
        for stream, combine in streams:
            stream.update_into(zeros, key_stream)
            combine(part, mask, out=part)


def _stream(seed: bytes) -> CipherContext:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    return Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
