"""Shamir's sharing against an exact interpolation over the rationals, and that too few shares tell nothing."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from defenses.secagg import shamir
from defenses.secagg.refusals import Reason, Rejected


def interpolated(points: list[tuple[int, int]]) -> int:
    """The value at 0 of the polynomial through `points`, in the textbook's form over the rationals, modulo p last."""
    total = Fraction(0)
    for x, y in points:
        term = Fraction(y)
        for other, _ in points:
            if other != x:
                term *= Fraction(-other, x - other)
        total += term
    return total.numerator * pow(total.denominator, -1, shamir.P) % shamir.P


def test_p_is_the_smallest_prime_above_every_secret():
    assert sympy.isprime(shamir.P)
    assert sympy.nextprime(2**256) == shamir.P


def test_shares_are_values_of_the_polynomial_whose_coefficients_were_drawn():
    drawn = bytes(range(96))
    secret = bytes(range(100, 132))
    second, first = (int.from_bytes(part, "little") for part in (drawn[:48], drawn[48:]))
    constant = int.from_bytes(secret, "little")
    shares = shamir.deal(secret, [1, 5, 1000], 3, lambda size: drawn[:size])
    assert shares == [(constant + first * x + second * x * x) % shamir.P for x in (1, 5, 1000)]


@given(st.binary(min_size=32, max_size=32), st.integers(1, 60), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_recovers_the_secret_as_exact_interpolation_does(secret, threshold, rng):
    holders = rng.sample(range(1, 2000), threshold + rng.randrange(10))
    shares = dict(zip(holders, shamir.deal(secret, holders, threshold, rng.randbytes), strict=True))
    for size in {threshold, len(holders)}:
        some = rng.sample(holders, size)
        assert shamir.recover([shares[x] for x in some], shamir.weights(some)) == secret
    if threshold <= 20:
        some = rng.sample(holders, threshold)
        assert interpolated([(x, shares[x]) for x in some]) == int.from_bytes(secret, "little")


def test_every_subset_of_the_threshold_s_size_gives_the_same_secret():
    secret = b"\xff" * 32
    shares = shamir.deal(secret, range(1, 8), 4, random.Random(0).randbytes)
    for some in itertools.combinations(range(1, 8), 4):
        assert shamir.recover([shares[x - 1] for x in some], shamir.weights(some)) == secret


def test_long_polynomials_are_evaluated_exactly():
    rng = random.Random(1)
    secret, holders = rng.randbytes(32), [*range(1, 700), shamir.LARGEST_HOLDER]
    shares = shamir.deal(secret, holders, 667, rng.randbytes)
    assert shamir.recover(shares[-667:], shamir.weights(holders[-667:])) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_one_share_below_the_threshold_is_uniform_whatever_the_secret(secret):
    # t − 1 = 2 shares of each of 4000 dealings: chi-square over the bytes of their low 256 bits, together and for each
    # byte's place. False alarm: 1e-6 for each of 65 statistics, with a fixed seed.
    rng = random.Random(2)
    pairs = [shamir.deal(secret, [3, 9, 4], 3, rng.randbytes)[:2] for _ in range(4000)]
    low = np.frombuffer(b"".join(share.to_bytes(33, "little")[:32] for pair in pairs for share in pair), dtype=np.uint8)
    for column in [low, *low.reshape(4000, 64).T]:
        counts = np.bincount(column, minlength=256)
        expected = len(column) / 256
        assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255)


def test_one_share_too_few_fits_every_secret():
    # Perfect secrecy, in the small: t − 1 shares and any secret at all lie on one polynomial, another for
    # each secret.
    shares = shamir.deal(b"s" * 32, [1, 2, 3], 3, random.Random(3).randbytes)[:2]
    third = {
        sum(y * w for y, w in zip((secret, *shares), lagrange_at(3, (0, 1, 2)), strict=True)) % shamir.P
        for secret in range(50)
    }
    assert len(third) == 50


def lagrange_at(point: int, nodes: tuple[int, ...]) -> list[int]:
    found = []
    for x in nodes:
        term = Fraction(1)
        for other in nodes:
            if other != x:
                term *= Fraction(point - other, x - other)
        found.append(term.numerator * pow(term.denominator, -1, shamir.P) % shamir.P)
    return found


def test_shares_of_no_secret_of_256_bits_are_refused():
    with pytest.raises(Rejected) as refused:
        shamir.recover([2**256 + 5], shamir.weights([1]))
    assert refused.value.reason is Reason.BAD_SHARE


@pytest.mark.parametrize(
    ("secret", "holders", "threshold"),
    [
        (b"short", [1, 2], 2),
        (bytes(32), [1, 1], 2),
        (bytes(32), [0, 1], 2),
        (bytes(32), [1, 2], 3),
        (bytes(32), [1], 0),
    ],
)
def test_a_dealing_that_makes_no_sense_is_an_error(secret, holders, threshold):
    with pytest.raises(ValueError, match=r"secret|holder|threshold"):
        shamir.deal(secret, holders, threshold, bytes)
