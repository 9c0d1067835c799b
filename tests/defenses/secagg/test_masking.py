"""Masked vectors look uniform to whoever does not hold all their masks, and no two masks are the same.

Each claim is a function, so that it can be made of the protocol as it is and of one with a fault planted: the tests at
the end are tests of these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from defenses.secagg import keys, masks, shamir
from defenses.secagg.client import Client
from defenses.secagg.keys import Context
from defenses.secagg.masks import Words
from defenses.secagg.messages import Masked
from defenses.secagg.parameters import Parameters, Stage
from tests.cohorts import MODEL, cohort, plain_sum

LENGTH = 40_000
ALARM = 1e-6  # the chance of a false alarm of one chi-square over 256 values; the seeds are fixed


def uneven(strings: Iterable[NDArray[np.uint8]]) -> int:
    """How many of the byte strings are not uniform."""
    found = 0
    for string in strings:
        counts = np.bincount(string, minlength=256)
        expected = len(string) / 256
        found += bool(((counts - expected) ** 2 / expected).sum() > chi2.isf(ALARM, 255))
    return found


def whole_bytes(words: Words, bits: int) -> NDArray[np.uint8]:
    """The lower bytes of words modulo 2^bits, those that all values can take."""
    return words.view(np.uint8).reshape(len(words), -1)[:, : bits // 8].reshape(-1)


def masked(bits: int, value: int) -> tuple[list[Words], list[Client]]:
    """What four clients send whose vectors are one number over and over; and the clients."""
    parameters = Parameters.complete(4, LENGTH, bits, 2)
    played = cohort(parameters)
    for client in played.clients:
        client._vector = np.full(LENGTH, value, dtype=masks.word_type(bits))
    told = played.play(until=Stage.MASKED)
    sent = []
    for client, raw in told.items():
        message = played.server.receive(played.clients[client].answer(raw)).message
        assert isinstance(message, Masked)
        sent.append(message.words)
    return sent, played.clients


def masked_vectors_are_uniform(bits: int = 24) -> None:
    # 8 statistics a width: a false alarm in 8e-6 of all seeds.
    for value in (0, 255):
        sent, _ = masked(bits, value)
        assert uneven(whole_bytes(words, bits) for words in sent) == 0


def sums_short_of_all_are_uniform_without_their_self_masks() -> None:
    # All groups of one to three of four clients: 14 statistics, a false alarm in 1.4e-5 of all seeds.
    sent, clients = masked(24, 0)
    bare = [words.copy() for words in sent]
    for words, client in zip(bare, clients, strict=True):
        masks.add(words, client.mask_seeds()[0][0], subtract=True)
    sums = []
    for size in (1, 2, 3, 4):
        for group in itertools.combinations(bare, size):
            sums.append(np.sum(group, axis=0, dtype=np.uint32))
            masks.reduce(sums[-1], 24)
    assert not sums.pop().any()  # that of all four
    assert uneven(whole_bytes(words, 24) for words in sums) == 0


def round_of(context: Context, parameters: Parameters) -> list[list[tuple[bytes, bool]]]:
    """Each client's seeds. The same secrets whatever the context is, as if a source of randomness were stuck."""
    played = cohort(parameters, contexts=[context] * parameters.clients)
    played.play()
    return [client.mask_seeds() for client in played.clients]


def no_two_masks_are_the_same() -> None:
    """Over pairs, clients, and rounds that differ in their number, their model or a parameter alone."""
    one, other = Parameters.complete(5, 8, 32, 3), Parameters.complete(5, 8, 32, 4)
    contexts = [one.context(1, MODEL), one.context(2, MODEL), one.context(1, b"n" * 32), other.context(1, MODEL)]
    seen: set[bytes] = set()
    for context, parameters in zip(contexts, [one, one, one, other], strict=True):
        held: dict[bytes, list[tuple[int, bool]]] = {}
        for number, seeds in enumerate(round_of(context, parameters)):
            for seed, subtract in seeds:
                held.setdefault(masks.expand(seed, 8, 32).tobytes(), []).append((number, subtract))
        pairs = [sorted(holders) for holders in held.values() if len(holders) == 2]
        alone = [holders[0] for holders in held.values() if len(holders) == 1]
        # Each pair has one, which the lower of the two adds and the other subtracts; and each client one of its own.
        assert sorted(pairs) == [[(low, False), (high, True)] for low, high in itertools.combinations(range(5), 2)]
        assert sorted(alone) == [(number, False) for number in range(5)]
        assert len(held) == 15
        assert not seen & set(held)
        seen |= set(held)


def every_bit_of_a_seed_counts() -> None:
    seeds = [bytes(32)] + [(1 << bit).to_bytes(32, "little") for bit in range(256)]
    assert len({masks.expand(seed, 8, 32).tobytes() for seed in seeds}) == 257


def one_share_too_few_recovers_no_secret() -> None:
    """Whatever a server has of t − 1 holders, neither secret of anyone is what Lagrange's formula gives of it."""
    parameters = Parameters.complete(6, 4, 32, 4)
    played = cohort(parameters)
    played.play(until=Stage.UNMASK)
    for owner in played.clients:
        for holders in itertools.combinations(range(6), 3):
            weights = shamir.weights([holder + 1 for holder in holders])
            for kind, secret in enumerate((owner._mask_secret, owner._self_secret)):
                shares = [played.clients[holder]._held[owner.number][kind] for holder in holders]
                value = sum(share * weight for share, weight in zip(shares, weights, strict=True)) % shamir.P
                assert value != int.from_bytes(secret, "little")


def the_sum_is_the_plain_sum() -> None:
    played = cohort(Parameters.complete(5, 9, 20, 3))
    played.play(drops={1: Stage.MASKED, 2: Stage.UNMASK})
    assert played.server.total is not None
    assert played.server.total.tolist() == plain_sum(played.vectors, [0, 2, 3, 4], 20)


@pytest.mark.parametrize("bits", [8, 20, 32, 48])
def test_masked_vectors_are_uniform_whatever_is_in_them(bits):
    masked_vectors_are_uniform(bits)


def test_the_sum_of_any_group_short_of_all_is_uniform_even_without_its_self_masks():
    sums_short_of_all_are_uniform_without_their_self_masks()


def test_no_two_pairs_clients_or_rounds_share_a_mask():
    no_two_masks_are_the_same()


def test_all_256_bits_of_a_seed_count():
    every_bit_of_a_seed_counts()


def test_shares_of_one_holder_too_few_recover_no_secret():
    one_share_too_few_recovers_no_secret()


def test_the_unmasked_sum_is_the_plain_sum():
    the_sum_is_the_plain_sum()


# Faults planted, each with the claim that has to fail.

HONEST_ADD, HONEST_DERIVE, HONEST_DEAL = masks.add_all, keys.derive, shamir.deal

Seeds = Sequence[tuple[bytes, bool]]


def cut_seeds(words: Words, seeds: Seeds) -> None:
    HONEST_ADD(words, [(seed[:4] + bytes(28), subtract) for seed, subtract in seeds])


def short_words(words: Words, seeds: Seeds) -> None:
    mask = np.zeros_like(words)
    HONEST_ADD(mask, seeds)
    mask &= mask.dtype.type(0x7FFFFF)  # one bit too few of 24
    words += mask


def no_masks(words: Words, seeds: Seeds) -> None:
    pass


def unbound(secret: bytes, binding: bytes, purpose: str, *names: int) -> bytes:
    return HONEST_DERIVE(secret, bytes(32) if "mask" in purpose else binding, purpose, *names)


def one_less(secret: bytes, holders: list[int], threshold: int, random: Callable[[int], bytes]) -> list[int]:
    return HONEST_DEAL(secret, holders, threshold - 1, random)


def one_sided(agreed: bytes, session: bytes, pair: tuple[int, int]) -> bytes:
    return keys.derive(agreed, session, "pair mask", *pair)


def same_for_all(secret: bytes, session: bytes, client: int) -> bytes:
    return keys.derive(session, session, "self mask")


FAULTS = {
    "a seed cut to 32 bits": (masks, "add_all", cut_seeds, every_bit_of_a_seed_counts),
    "masks of one bit too few": (masks, "add_all", short_words, masked_vectors_are_uniform),
    "no masks at all": (masks, "add_all", no_masks, sums_short_of_all_are_uniform_without_their_self_masks),
    "masks that do not depend on the round": (keys, "derive", unbound, no_two_masks_are_the_same),
    "one self mask for all": (keys, "self_seed", same_for_all, no_two_masks_are_the_same),
    "a pair that does not agree": (keys, "pair_seed", one_sided, the_sum_is_the_plain_sum),
    "a threshold of one less": (shamir, "deal", one_less, one_share_too_few_recovers_no_secret),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_claim_fails_with_the_fault_planted(fault, monkeypatch):
    module, name, planted, claim = FAULTS[fault]
    monkeypatch.setattr(module, name, planted)
    with pytest.raises(AssertionError):
        claim()
