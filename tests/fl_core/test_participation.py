"""Who is asked when, and what may be claimed for it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import binom, chi2

from fl_core.errors import InputError
from fl_core.participation import (
    Available,
    Batches,
    Cyclic,
    Everyone,
    Fixed,
    ParticipationEvent,
    PoissonClients,
    Swapping,
    Uniform,
)
from fl_core.seeds import generator

KINDS = [
    Everyone(),
    Fixed(3),
    Uniform(3),
    PoissonClients(0.4),
    Available(2, period=5, share=0.5),
    Available(None, period=5, share=0.5),
    Cyclic(2, groups=3),
    Cyclic(None, groups=3),
    Swapping(3),
    Batches(2, cohort=4),
]

participations = st.one_of(
    st.just(Everyone()),
    st.integers(1, 6).map(Fixed),
    st.integers(1, 6).map(Uniform),
    st.floats(0.01, 1).map(PoissonClients),
    st.builds(Available, st.none() | st.integers(1, 6), st.integers(1, 9), st.floats(0.01, 1)),
    st.builds(Cyclic, st.none() | st.integers(1, 2), st.integers(1, 3)),
    st.integers(1, 5).map(Swapping),
    st.integers(1, 6).map(lambda cohort: Batches(1, cohort)),
)


def drawn(participation, clients: int, rounds: int, run: int = 0, replica: int = 0) -> list[tuple[int, ...]]:
    return [tuple(participation.draw(clients, run, replica, round).tolist()) for round in range(rounds)]


def surprise(found: Counter, expected: dict) -> float:
    """The chance of counts at least this far from the expected ones, if those are true (chi-square)."""
    assert set(found) <= set(expected), "nothing impossible happened"
    statistic = sum((found[key] - many) ** 2 / many for key, many in expected.items())
    return float(chi2.sf(statistic, len(expected) - 1))


def evenly(outcomes, total: int) -> dict:
    keys = list(outcomes)
    return dict.fromkeys(keys, total / len(keys))


@given(
    participation=participations,
    clients=st.integers(6, 12),
    run=st.integers(0, 2**40),
    replica=st.integers(0, 9),
    round=st.integers(0, 500),
)
def test_every_draw_is_sorted_distinct_eligible_and_a_function_of_its_arguments(
    participation, clients, run, replica, round
):
    participation.check(clients)
    asked = participation.draw(clients, run, replica, round)
    eligible = participation.eligible(clients, run, replica, round)
    for numbers in (asked, eligible):
        assert numbers.dtype == torch.int64
        assert numbers.ndim == 1
        assert numbers.tolist() == sorted(set(numbers.tolist()))
        assert set(numbers.tolist()) <= set(range(clients))
    assert set(asked.tolist()) <= set(eligible.tolist())
    assert len(asked) or isinstance(participation, PoissonClients | Available), "only chance may ask nobody"
    assert torch.equal(participation.draw(clients, run, replica, round), asked)


@pytest.mark.parametrize("participation", [kind for kind in KINDS if not isinstance(kind, Everyone)], ids=repr)
def test_runs_and_replicas_draw_apart(participation):
    # Cyclic without a cohort is the same everywhere by design; any other two of 40 rounds agree by chance below 1e-9.
    first = drawn(participation, 30, 40)
    assert drawn(participation, 30, 40) == first
    public = participation == Cyclic(None, groups=3)
    assert (drawn(participation, 30, 40, replica=1) == first) == public
    assert (drawn(participation, 30, 40, run=1) == first) == public


@given(cohort=st.integers(1, 9), run=st.integers(0, 99), replica=st.integers(0, 9), round=st.integers(0, 99))
def test_uniform_draws_the_first_of_a_permutation(cohort, run, replica, round):
    # Pinned: stored runs can only be repeated while this holds.
    order = torch.randperm(9, generator=generator(run, "cohort", replica, round))
    assert torch.equal(Uniform(cohort).draw(9, run, replica, round), order[:cohort].sort().values)


def test_a_uniform_cohort_is_any_subset_with_the_same_chance():
    # 4 over 2 subsets, 3000 rounds: chi-square with 5 degrees of freedom, false alarm 1e-6 (and the seed is fixed).
    found = Counter(drawn(Uniform(2), 4, 3000))
    assert surprise(found, evenly(itertools.combinations(range(4), 2), 3000)) > 1e-6
    assert drawn(Uniform(4), 4, 3) == [(0, 1, 2, 3)] * 3


def test_a_fixed_cohort_stays_and_is_any_subset_over_replicas():
    # As above, over replicas: false alarm 1e-6.
    assert len(set(drawn(Fixed(3), 10, 20))) == 1
    found = Counter(tuple(Fixed(2).draw(4, 0, replica, 0).tolist()) for replica in range(3000))
    assert surprise(found, evenly(itertools.combinations(range(4), 2), 3000)) > 1e-6


def test_poisson_clients_each_toss_their_own_coin_at_the_rate():
    # All 8 outcomes of three independent coins, chi-square with 7 degrees of freedom: false alarm 1e-6.
    found = Counter(drawn(PoissonClients(0.3), 3, 4000))
    subsets = itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in range(4))
    expected = {subset: 4000 * 0.3 ** len(subset) * 0.7 ** (3 - len(subset)) for subset in subsets}
    assert surprise(found, expected) > 1e-6
    assert drawn(PoissonClients(1), 3, 2) == [(0, 1, 2)] * 2


@pytest.mark.parametrize(("period", "share"), [(10, 0.3), (7, 0.25), (24, 0.5), (3, 1.0), (5, 0.01)])
def test_a_client_is_available_for_its_share_of_a_period_in_one_stretch(period, share):
    clients, participation = 400, Available(None, period, share)
    there = torch.zeros(2 * period, clients, dtype=torch.bool)
    for round in range(2 * period):
        there[round, participation.eligible(clients, 0, 0, round)] = True
    assert torch.equal(there[:period], there[period:]), "the next day is as this one"
    days = there[:period].sum(0)
    assert int(days.min()) >= math.floor(share * period)
    assert int(days.max()) <= math.ceil(share * period)
    comings = (there[1 : period + 1] & ~there[:period]).sum(0)
    assert int(comings.max()) <= 1
    # The number of those at hand in any round is binomial: false alarm 1e-6 a period.
    for at_hand in there[:period].sum(1).tolist():
        assert min(binom.cdf(at_hand, clients, share), binom.sf(at_hand - 1, clients, share)) > 1e-6 / 2 / period


def test_a_cohort_among_the_available_is_uniform_and_smaller_where_they_are_fewer():
    # Given who is available, every subset of 2 has the same chance. A set of four is common enough among the 24
    # phases of a day: chi-square with 5 degrees of freedom, false alarm 1e-6.
    participation = Available(2, period=24, share=0.5)
    at_hand = {round: tuple(participation.eligible(8, 1, 0, round).tolist()) for round in range(24)}
    round = next(round for round, those in at_hand.items() if len(those) == 4)
    found = Counter(tuple(participation.draw(8, 1, 0, round + 24 * day).tolist()) for day in range(1500))
    assert surprise(found, evenly(itertools.combinations(at_hand[round], 2), 1500)) > 1e-6
    many, all_of_them = Available(7, period=24, share=0.5), Available(None, period=24, share=0.5)
    assert drawn(many, 8, 24, run=1) == drawn(all_of_them, 8, 24, run=1) == list(at_hand.values())


def test_cyclic_blocks_take_turns_and_a_cohort_is_uniform_inside_its_block():
    assert drawn(Cyclic(None, groups=3), 7, 4) == [(0, 1, 2), (3, 4), (5, 6), (0, 1, 2)]
    # Three subsets of 2 in the block of 3: chi-square with 2 degrees of freedom, false alarm 1e-6.
    cohorts = drawn(Cyclic(2, groups=3), 7, 6000)
    assert surprise(Counter(cohorts[::3]), evenly(itertools.combinations(range(3), 2), 2000)) > 1e-6
    assert set(cohorts[1::3]) == {(3, 4)}


@given(participation=participations, clients=st.integers(6, 12), rounds=st.integers(1, 20))
def test_no_client_takes_part_in_more_rounds_than_its_event_says(participation, clients, rounds):
    event = participation.event(clients, rounds)
    times = Counter(itertools.chain.from_iterable(drawn(participation, clients, rounds)))
    assert max(times.values(), default=0) <= event.rounds
    assert event.rounds <= rounds
    assert 0 < event.rate <= 1


def test_events_say_what_an_accountant_may_compose():
    assert Everyone().event(10, 7) == ParticipationEvent("fixed", 1.0, 7)
    assert Fixed(3).event(10, 7) == ParticipationEvent("fixed", 1.0, 7), "being outside for good is no amplification"
    assert Uniform(3).event(10, 7) == ParticipationEvent("uniform", 0.3, 7)
    assert PoissonClients(0.2).event(10, 7) == ParticipationEvent("poisson", 0.2, 7)
    assert Available(3, 4, 0.5).event(10, 7) == ParticipationEvent("availability", 1.0, 7)
    assert Cyclic(None, 3).event(10, 7) == ParticipationEvent("cyclic", 1.0, 3), "in rounds 0, 3 and 6"
    assert Cyclic(2, 3).event(10, 7) == ParticipationEvent("cyclic", 2 / 3, 3), "the smallest block has 3"


@pytest.mark.parametrize("participation", [Uniform(3), PoissonClients(0.3), Cyclic(1, groups=2)], ids=repr)
def test_the_rate_is_the_chance_that_a_round_which_could_include_a_client_does(participation):
    # Binomial over the rounds in which client 0 is eligible: false alarm 1e-6.
    eligible = [round for round in range(4000) if 0 in participation.eligible(10, 0, 0, round)]
    asked = sum(0 in participation.draw(10, 0, 0, round) for round in eligible)
    rate = participation.event(10, 4000).rate
    assert min(binom.cdf(asked, len(eligible), rate), binom.sf(asked - 1, len(eligible), rate)) > 5e-7


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Fixed(0), "participation.cohort"),
        (lambda: Uniform(2.5), "participation.cohort"),
        (lambda: PoissonClients(0), "participation.rate"),
        (lambda: PoissonClients(1.1), "participation.rate"),
        (lambda: Available(0, 4, 0.5), "participation.cohort"),
        (lambda: Available(None, 0, 0.5), "participation.period"),
        (lambda: Available(None, 4, 0), "participation.share"),
        (lambda: Cyclic(None, 0), "participation.groups"),
        (lambda: Cyclic(0, 2), "participation.cohort"),
        (lambda: Fixed(6).check(5), "participation.cohort is 6, but there are only 5 clients"),
        (lambda: Uniform(6).check(5), "participation.cohort is 6, but there are only 5 clients"),
        (lambda: Available(6, 4, 0.5).check(5), "participation.cohort is 6, but there are only 5 clients"),
        (lambda: Cyclic(None, 6).check(5), "participation.groups is 6, but there are only 5 clients"),
        (lambda: Cyclic(3, 2).check(5), "participation.cohort is 3, but there are only 2 clients in the smallest"),
        (lambda: Swapping(0), "participation.cohort"),
        (lambda: Swapping(5).check(5), "participation.cohort is 5, but there are only 4 clients beside"),
        (lambda: Batches(0, 4), "participation.batch"),
        (lambda: Batches(3, 4), "participation.cohort is 4, no multiple of participation.batch, 3"),
        (lambda: Batches(2, 4).check(5), "clients is 5, no multiple of participation.batch, 2"),
        (lambda: Batches(2, 8).check(6), "participation.cohort is 8, but there are only 6 clients"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(made, said):
    with pytest.raises(InputError, match=said) as refused:
        made()
    assert "\n" not in str(refused.value)


def test_swapping_exchanges_one_client_a_round_and_every_pair_alike():
    rounds = drawn(Swapping(3), clients=7, rounds=4001)
    swaps = Counter()
    for before, after in itertools.pairwise(rounds):
        (leaves,), (joins,) = set(before) - set(after), set(after) - set(before)
        swaps[leaves, joins] += 1
    # False alarm: 1e-4. Rounds depend on each other, but over many of them every ordered pair is as likely.
    assert surprise(swaps, evenly(itertools.permutations(range(7), 2), 4000)) > 1e-4


def test_batches_ask_whole_batches_every_choice_of_them_alike_and_deal_anew_in_every_replica():
    participation = Batches(2, cohort=4)
    rounds = drawn(participation, clients=8, rounds=3000)
    partners = {frozenset(b for b in range(8) if all((a in one) == (b in one) for one in rounds)) for a in range(8)}
    assert sorted(map(len, partners)) == [2, 2, 2, 2]
    found = Counter(frozenset(batch for batch in partners if batch <= set(one)) for one in rounds)
    assert surprise(found, evenly(map(frozenset, itertools.combinations(partners, 2)), 3000)) > 1e-4  # false alarm
    assert len({drawn(participation, 8, 1, replica=replica)[0] for replica in range(20)}) > 10


def test_every_option_in_conf_makes_a_participation_that_fits_the_default_federation():
    folder = Path(__file__).parents[2] / "conf" / "participation"
    found = {path.stem: instantiate(OmegaConf.load(path)) for path in folder.glob("*.yaml")}
    assert set(map(type, found.values())) == set(map(type, KINDS))
    for one in found.values():
        one.check(5)
