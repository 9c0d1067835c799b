"""Shamir's secret sharing (1979) of 256-bit secrets over the prime field of p = 2^256 + 297.

p is the smallest prime above 2^256, so every secret of 32 bytes is a field element, and any t − 1 shares of it are
uniform and independent of it. Holder x gets the polynomial's value at x, a small positive number: with small x,
Horner's rule multiplies a long number by a short one, and reduces modulo p only now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from defenses.secagg.refusals import Reason, Rejected

P = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
LARGEST_HOLDER = 1 << 20

_DRAWN = 48  # bytes for a coefficient: taken modulo p they are uniform up to 2⁻¹²⁷ in total variation
_LAZY = 24  # Horner steps without a reduction


def deal(secret: bytes, holders: Sequence[int], threshold: int, random: Callable[[int], bytes]) -> list[int]:
    """A share of `secret` (32 bytes) for each holder, any `threshold` of which recover it; numbers in [0, p).

    `holders` are distinct, in [1, 2^20]. `random` gives 48·(threshold − 1) bytes, in one call.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    _check(holders)
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold {threshold} for {len(holders)} holders")
    drawn = random(_DRAWN * (threshold - 1))
    coefficients = [int.from_bytes(drawn[at : at + _DRAWN], "little") % P for at in range(0, len(drawn), _DRAWN)]
    coefficients.append(int.from_bytes(secret, "little"))
    chunks = [coefficients[at : at + _LAZY] for at in range(0, len(coefficients), _LAZY)]
    return [_value(chunks, x) for x in holders]


def _value(chunks: list[list[int]], x: int) -> int:
    """The polynomial's value at x; its coefficients come highest first."""
    value = 0
    for chunk in chunks:
        for coefficient in chunk:
            value = value * x + coefficient
        value %= P
    return value


def weights(holders: Sequence[int]) -> list[int]:
    """Lagrange's coefficients at 0 for these holders, in [0, p): the same for every secret that they hold."""
    _check(holders)
    # Π other/(other − x): the products of small numbers are cheaper to make whole than modulo p.
    everyone = math.prod(holders) % P
    below = [x * math.prod(other - x for other in holders if other != x) % P for x in holders]
    return [everyone * inverse % P for inverse in _inverses(below)]


def _inverses(numbers: list[int]) -> list[int]:
    """The inverses modulo p of numbers other than 0, for the price of one (Montgomery's trick)."""
    products = [1]
    for number in numbers:
        products.append(products[-1] * number % P)
    inverse = pow(products[-1], -1, P)
    found = []
    for number, product in zip(reversed(numbers), reversed(products[:-1]), strict=True):
        found.append(product * inverse % P)
        inverse = inverse * number % P
    return found[::-1]


def recover(shares: Sequence[int], coefficients: Sequence[int]) -> bytes:
    """The secret of 32 bytes from at least a threshold of shares, with the `weights` of their holders.

    False or too few shares give another secret, as a rule without notice; it is for the caller to compare it with
    what its owner promised. Raises Rejected (BAD_SHARE) where they give none of 256 bits.
    """
    secret = sum(share * weight for share, weight in zip(shares, coefficients, strict=True)) % P
    if secret >> (8 * SECRET_BYTES):
        raise Rejected(Reason.BAD_SHARE, "the shares are those of no secret of 256 bits")
    return secret.to_bytes(SECRET_BYTES, "little")


def _check(holders: Sequence[int]) -> None:
    if len(set(holders)) != len(holders):
        raise ValueError("a holder twice")
    if holders and not (min(holders) >= 1 and max(holders) <= LARGEST_HOLDER):
        raise ValueError(f"holders are numbered from 1 to {LARGEST_HOLDER}")
