"""What the studies of malicious servers are made of: the way into a sum, and a server that tells two stories."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from attacks.pictures import EXACT_DB
from defenses.discrete_gaussian import epsilon_concentrated
from defenses.secagg.parameters import Parameters, Stage
from defenses.secagg.protocol import seeded
from defenses.secagg.refusals import Aborted, Reason
from experiments.studies.tampering import (
    Channel,
    blind_guesses,
    clipped,
    decibels,
    masked_sum,
    words,
)
from experiments.studies.two_stories import Ending, tell
from fl_core.seeds import generator

CLIENTS, LENGTH, BITS = 9, 300, 20
NO_HASH = bytes(32)


def vectors() -> torch.Tensor:
    return clipped(torch.randn(CLIENTS, LENGTH, generator=generator(0, "vectors")))


def channel(noise_multiplier: float = 0.0) -> Channel:
    return Channel(clients=CLIENTS, length=LENGTH, bits=BITS, noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("bits", [5, 20, 32, 33, 48])
def test_words_stand_for_signed_numbers_modulo_their_bits(bits: int):
    edge = 1 << (bits - 1)
    found = words(torch.tensor([[-edge, -1, 0, 1, edge - 1]]), bits)[0]
    assert found.tolist() == [edge, 2 * edge - 1, 0, 1, edge - 1]
    assert found.dtype == (np.uint32 if bits <= 32 else np.uint64)


def test_the_masked_sum_is_the_sum_of_the_survivors_to_the_bit():
    parameters = Parameters.complete(CLIENTS, LENGTH, BITS, 3)
    steps = channel().encode(vectors(), 0, 0)
    context = parameters.context(0, NO_HASH)
    assert torch.equal(masked_sum(steps, parameters, context, 0, 0), steps.sum(0))
    gone = dict.fromkeys((0, 4, 5, 8), Stage.MASKED)
    left = [client for client in range(CLIENTS) if client not in gone]
    assert torch.equal(masked_sum(steps, parameters, context, 0, 0, gone), steps[left].sum(0))
    with pytest.raises(Aborted, match="2 clients"):
        masked_sum(steps, parameters, context, 0, 0, dict.fromkeys(range(2, CLIENTS), Stage.MASKED))


@pytest.mark.parametrize("noise_multiplier", [0.0, 0.01])
def test_a_channel_tells_its_own_error(noise_multiplier: float):
    way, true = channel(noise_multiplier), vectors()
    errors = [
        (way.decode(way.encode(true, 0, trial).sum(0)) - true.sum(0)).square().mean().item() for trial in range(20)
    ]
    told = way.error(CLIENTS) ** 2
    if noise_multiplier:  # 6000 squares: their mean is off by 2%
        assert np.mean(errors) == pytest.approx(told, rel=0.1)
    else:  # told for the worst place between two grid steps; a sixth of a step squared is the mean
        assert np.mean(errors) == pytest.approx(told * 4 / 6, rel=0.1)


def test_a_vector_of_zeros_is_rounded_by_nothing_and_still_noised():
    still = torch.zeros(CLIENTS, LENGTH)
    assert not channel().encode(still, 0, 0).any()
    way = channel(0.1)
    noise = way.decode(way.encode(still, 0, 0).sum(0))
    assert noise.std().item() == pytest.approx(way.error(CLIENTS, rounded=0), rel=0.2)  # 300 numbers: 4% off
    assert way.error(CLIENTS, rounded=0) == pytest.approx(0.1, rel=1e-2)


def test_fewer_shares_of_the_noise_guarantee_less():
    way = channel(1.0)
    each = [way.epsilon(shares, 1e-5) for shares in range(1, CLIENTS + 1)]
    assert all(more > less for more, less in itertools.pairwise(each))
    # A Gaussian of deviation 1/3 of the clip, but for the grid: ρ = 9/2.
    assert each[0] == pytest.approx(epsilon_concentrated(4.5, 1e-5), rel=0.01)
    assert channel().epsilon(CLIENTS, 1e-5) is None


def test_an_exact_picture_counts_as_such_and_what_is_outside_is_cut():
    truth = torch.tensor([[[[0.0, 1.0]]], [[[0.0, 1.0]]]])
    found = decibels(torch.tensor([[[[-3.0, 7.0]]], [[[0.1, 0.9]]]]), truth)
    assert found.tolist() == pytest.approx([EXACT_DB, 20.0], abs=1e-4)


def test_the_nearest_public_picture_is_the_nearest():
    public = torch.rand(50, 1, 4, 4, generator=generator(0, "public"))
    truth = public[[7, 31]] + 0.01
    guesses = blind_guesses(truth, public)
    assert torch.equal(guesses["nearest public image"], public[[7, 31]])
    assert torch.equal(guesses["mean image"][0], public.mean(0))


# Two stories about the victim

BELIEVERS = range(4)  # of whom the victim is one


def told(threshold: int, malicious: bool = False) -> tuple[Ending, np.ndarray]:
    sent = words(channel().encode(vectors(), 0, 0), BITS)
    parameters = Parameters.complete(CLIENTS, LENGTH, BITS, threshold, malicious=malicious)
    ending = tell(
        sent,
        victim=2,
        parameters=parameters,
        context=parameters.context(0, NO_HASH),
        believers=BELIEVERS,
        random=seeded(bytes(32)),
    )
    return ending, sent[2]


@pytest.mark.parametrize("threshold", [1, 4])
def test_two_groups_of_a_threshold_each_give_away_the_victim_s_own_vector(threshold: int):
    ending, own = told(threshold)
    assert ending.vector is not None
    assert np.array_equal(ending.vector, own)


@pytest.mark.parametrize("threshold", [5, 7])
def test_a_threshold_above_half_leaves_no_two_groups_that_are_large_enough(threshold: int):
    ending, _ = told(threshold)
    assert ending.vector is None
    assert (ending.self_shares, ending.key_shares) == (4, 5)
    assert not ending.refusals


def test_clients_who_sign_what_they_were_told_refuse_two_stories():
    ending, _ = told(7, malicious=True)
    assert ending.vector is None
    assert ending.self_shares == ending.key_shares == 0
    assert {refusal.reason for refusal in ending.refusals.values()} == {Reason.INCONSISTENT}
    assert len(ending.refusals) == CLIENTS
