"""ChaCha20's known answers through `expand`, and that masks look uniform and never repeat."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import chi2

from defenses.secagg import masks
from fl_core.errors import InputError

# RFC 8439, appendix A.1: test vectors 1 and 2 (key of zeros, blocks 0 and 1) and 4 (its block 2).
BLOCKS = (
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)
SECOND = (
    "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
    "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"
)


@pytest.mark.parametrize(("bits", "word"), [(32, "<u4"), (16, "<u4"), (1, "<u4"), (62, "<u8"), (33, "<u8")])
def test_masks_are_the_key_stream_of_rfc_8439_in_little_endian_words(bits, word):
    stream = np.frombuffer(bytes.fromhex(BLOCKS), dtype=word)
    mask = masks.expand(bytes(32), len(stream), bits)
    assert mask.dtype == np.dtype(word)
    np.testing.assert_array_equal(mask, stream & stream.dtype.type(2**bits - 1))


def test_the_whole_seed_is_the_key():
    key = b"\x00\xff" + bytes(30)
    np.testing.assert_array_equal(masks.expand(key, 48, 32)[32:], np.frombuffer(bytes.fromhex(SECOND), dtype="<u4"))
    # Every one of the 256 bits counts.
    seeds = [bytes(32)] + [(1 << bit).to_bytes(32, "little") for bit in range(256)]
    assert len({masks.expand(seed, 8, 32).tobytes() for seed in seeds}) == 257


@pytest.mark.parametrize("length", [0, 1, 32767, 32768, 32769, 100_000])
def test_a_mask_is_the_same_however_it_is_cut_into_pieces(length):
    seed = hashlib.sha256(b"pieces").digest()
    np.testing.assert_array_equal(masks.expand(seed, length, 32), masks.expand(seed, 100_001, 32)[:length])
    np.testing.assert_array_equal(masks.expand(seed, length, 20), masks.expand(seed, length, 32) & 0xFFFFF)


@pytest.mark.parametrize("bits", [8, 32, 40, 62])
def test_what_is_added_can_be_taken_off(bits):
    rng = np.random.default_rng(0)
    words = rng.integers(2**bits, size=40_000, dtype=np.uint64).astype(masks.word_type(bits))
    masked = words.copy()
    masks.add(masked, b"a" * 32)
    masks.add(masked, b"b" * 32, subtract=True)
    masks.reduce(masked, bits)
    expected = words + masks.expand(b"a" * 32, len(words), bits) - masks.expand(b"b" * 32, len(words), bits)
    np.testing.assert_array_equal(masked, expected & words.dtype.type(2**bits - 1))
    masks.add(masked, b"b" * 32)
    masks.add(masked, b"a" * 32, subtract=True)
    masks.reduce(masked, bits)
    np.testing.assert_array_equal(masked, words)


def test_a_mask_s_bytes_are_uniform():
    # Chi-square over 256 values; false alarm 1e-6, and the seed is fixed.
    counts = np.bincount(masks.expand(b"u" * 32, 1 << 18, 32).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255)


@pytest.mark.parametrize("bits", [0, 63, 3.0, True])
def test_bits_out_of_range_are_an_input_error(bits):
    with pytest.raises(InputError, match="at least 1 and at most 62"):
        masks.expand(bytes(32), 1, bits)


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        masks.expand(bytes(31), 1, 32)
