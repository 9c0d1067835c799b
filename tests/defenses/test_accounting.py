"""ε against published and closed-form answers, and noise calibrated on the safe side."""

from __future__ import annotations

import math

import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.accounting import (
    Event,
    calibrate,
    calibrate_worst,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    event_of,
)
from defenses.bounds import delta_gaussian, epsilon_gaussian
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.errors import InputError
from fl_core.sampling import Poisson, SamplingEvent, Shuffled

DELTA = 1e-5

# (rate, noise multiplier, steps): ε by PLD, PRV and RDP, and by the central limit theorem of GDP.
KNOWN = {
    (0.01, 1.0, 1000): (1.828, 1.838, 2.101, 1.618),
    (0.1, 1.0, 100): (7.047, 7.057, 7.90, 6.007),
    (1.0, 10.0, 100): (4.377, 4.387, 4.729, 4.390),
}


def poisson(rate: float, steps: int) -> list[SamplingEvent]:
    return [SamplingEvent(sampler="poisson", rate=rate, steps=steps)]


@pytest.mark.parametrize("setting", KNOWN)
def test_pld_gives_the_known_epsilons(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    assert epsilon_pld(noise, poisson(rate, steps), DELTA) == pytest.approx(KNOWN[setting][0], abs=6e-4)


@pytest.mark.parametrize("setting", KNOWN)
def test_rdp_gives_the_known_epsilons(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    assert epsilon_rdp(noise, poisson(rate, steps), DELTA) == pytest.approx(KNOWN[setting][2], abs=1e-3)


@pytest.mark.parametrize("setting", [setting for setting in KNOWN if setting[0] < 1])
def test_prv_gives_the_known_epsilons_within_a_hundredth_of_pld(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    by_prv = epsilon_prv(noise, poisson(rate, steps), DELTA)
    assert by_prv == pytest.approx(KNOWN[setting][1], abs=6e-4)
    assert by_prv == pytest.approx(epsilon_pld(noise, poisson(rate, steps), DELTA), rel=0.01)


@pytest.mark.parametrize("setting", KNOWN)
def test_the_central_limit_is_no_upper_bound_under_sampling(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    approximate = epsilon_gaussian(rate * math.sqrt(steps * math.expm1(noise**-2)), DELTA)
    assert approximate == pytest.approx(KNOWN[setting][3], abs=6e-4)
    assert (approximate < epsilon_pld(noise, poisson(rate, steps), DELTA)) == (rate < 1)


@pytest.mark.parametrize("mu", [0.02, 0.3, 1.0, 4.0, 14.0])
def test_full_batches_reach_the_gaussian_closed_form_from_above(mu: float) -> None:
    exact = epsilon_gaussian(mu, DELTA)
    reached = epsilon_pld(5.0 / mu, poisson(1.0, 25), DELTA)
    assert exact <= reached <= exact * (1 + 1e-4)


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.15, 15.0, 300), (0.15, 0.8, 300), (0.01, 1.0, 1000), (0.5, 0.3, 3)]
)
def test_a_much_finer_grid_lowers_epsilon_by_under_one_in_ten_thousand(rate: float, noise: float, steps: int) -> None:
    reached = epsilon_pld(noise, poisson(rate, steps), DELTA)
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=2e-5 * max(reached, 2.0)
    )
    fine = step.self_compose(steps).get_epsilon_for_delta(DELTA)
    assert fine * (1 - 1e-6) <= reached <= fine * (1 + 1e-4)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rate=st.floats(0.01, 0.4),
    noise=st.floats(0.5, 20.0),
    steps=st.integers(1, 400),
    factor=st.floats(1.05, 2.0),
)
def test_more_steps_a_larger_rate_or_less_noise_never_lower_epsilon(
    rate: float, noise: float, steps: int, factor: float
) -> None:
    epsilon = epsilon_pld(noise, poisson(rate, steps), DELTA)
    assert epsilon_pld(noise, poisson(rate, math.ceil(steps * factor)), DELTA) >= epsilon
    assert epsilon_pld(noise, poisson(rate * factor, steps), DELTA) >= epsilon
    assert epsilon_pld(noise / factor, poisson(rate, steps), DELTA) >= epsilon


def test_a_smaller_delta_never_lowers_epsilon() -> None:
    epsilons = [epsilon_pld(1.0, poisson(0.1, 100), 10.0**-power) for power in (2, 4, 6, 8, 10, 12)]
    assert epsilons == sorted(epsilons)
    assert math.isfinite(epsilons[-1])


def test_a_run_accounted_in_two_parts_costs_what_it_costs_whole() -> None:
    parts = poisson(0.1, 60) + poisson(0.1, 40)
    assert epsilon_pld(1.0, parts, DELTA) == epsilon_pld(1.0, poisson(0.1, 100), DELTA)


def test_two_rates_compose_to_between_their_extremes_and_under_rdp() -> None:
    mixed = poisson(0.05, 50) + poisson(0.2, 50)
    epsilon = epsilon_pld(1.0, mixed, DELTA)
    assert epsilon == pytest.approx(epsilon_pld(1.0, mixed[::-1], DELTA), rel=1e-9)
    assert epsilon_pld(1.0, poisson(0.05, 100), DELTA) < epsilon < epsilon_pld(1.0, poisson(0.2, 100), DELTA)
    assert 0.85 * epsilon_rdp(1.0, mixed, DELTA) < epsilon < epsilon_rdp(1.0, mixed, DELTA)


def test_a_full_batch_step_composes_with_sampled_ones() -> None:
    epsilon = epsilon_pld(2.0, poisson(1.0, 4) + poisson(0.1, 50), DELTA)
    assert epsilon_pld(2.0, poisson(1.0, 4), DELTA) < epsilon < epsilon_pld(2.0, poisson(1.0, 54), DELTA)


@pytest.mark.parametrize("noise", [0.6, 1.0, 2.0, 5.0, 15.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.11, 260), (0.15, 300)])
def test_rdp_is_never_below_pld(rate: float, steps: int, noise: float) -> None:
    assert epsilon_rdp(noise, poisson(rate, steps), DELTA) >= epsilon_pld(noise, poisson(rate, steps), DELTA)


@pytest.mark.parametrize(("epsilon", "noise"), [(1.0, 1.4158), (2.0, 0.9592), (4.0, 0.7349), (8.0, 0.5864)])
def test_calibration_gives_the_known_noise_multipliers(epsilon: float, noise: float) -> None:
    assert calibrate(epsilon, DELTA, poisson(0.01, 1000)) == pytest.approx(noise, rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0, 8.0, 32.0, 128.0, 500.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.15, 300), (1.0, 40), (0.3, 2)])
def test_calibrated_noise_is_safe_and_a_thousandth_less_is_not(epsilon: float, rate: float, steps: int) -> None:
    events = poisson(rate, steps)
    noise = calibrate(epsilon, DELTA, events)
    assert epsilon_pld(noise, events, DELTA) <= epsilon < epsilon_pld(noise * 0.999, events, DELTA)


def test_calibration_undoes_the_closed_form_of_full_batches() -> None:
    assert calibrate(epsilon_gaussian(1.0, DELTA), DELTA, poisson(1.0, 100)) == pytest.approx(10.0, rel=1e-3)


def test_no_more_noise_is_asked_for_than_delta_leaves_to_do() -> None:
    assert calibrate(1.0, DELTA, []) == 0.0
    # Drawn once with a chance of 1e-6, the unit is exposed with less than δ even without noise.
    assert calibrate(1.0, DELTA, poisson(1e-6, 1)) == pytest.approx(1e-3)


def test_the_worst_client_sets_the_noise_for_all() -> None:
    sampler = Poisson(local_epochs=1, batch_size=10)
    per_client = [[sampler.event(size, rounds=20)] for size in (100, 40, 40, 250)]
    worst = calibrate_worst(4.0, DELTA, per_client)
    assert worst == max(calibrate(4.0, DELTA, events) for events in per_client)
    assert all(epsilon_pld(worst, events, DELTA) <= 4.0 for events in per_client)


def test_without_noise_there_is_no_epsilon_and_without_draws_it_is_zero() -> None:
    for epsilon_by in (epsilon_pld, epsilon_rdp, epsilon_prv):
        assert epsilon_by(0.0, poisson(0.1, 10), DELTA) == math.inf
        assert epsilon_by(1.0, [], DELTA) == 0.0
        assert epsilon_by(1.0, poisson(0.0, 10) + poisson(0.1, 0), DELTA) == 0.0


def test_shuffled_batches_amplify_nothing_and_neighbours_replace_an_example() -> None:
    event = Shuffled(local_epochs=2, batch_size=10).event(100, rounds=5)
    assert event_of(event) == Event(relation="replace", rate=1.0, steps=10)
    exact = epsilon_gaussian(2 * math.sqrt(10) / 8.0, DELTA)  # ten visits, each moving a sum by two clips
    assert epsilon_pld(8.0, [event], DELTA) == pytest.approx(exact, rel=1e-4)
    assert epsilon_prv(8.0, [event], DELTA) == pytest.approx(exact, rel=1e-2)
    assert exact <= epsilon_rdp(8.0, [event], DELTA) <= 1.2 * exact
    sigma = calibrate_worst(1.0, DELTA, [[event]])
    assert epsilon_gaussian(2 * math.sqrt(10) / sigma, DELTA) == pytest.approx(1.0, rel=2e-3)


# dp-accounting's own accountants, on the events that they model as we do


def by_their_pld(relation: NeighboringRelation, noise: float, rate: float, steps: int, interval: float) -> float:
    accountant = PLDAccountant(relation, value_discretization_interval=interval)
    gaussian = dp_event.GaussianDpEvent(noise)
    accountant.compose(gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian), steps)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.01, 0.7, 500), (0.1, 1.5, 200), (0.5, 6.0, 50), (1.0, 8.0, 30)]
)
@pytest.mark.parametrize("relation", ["add or remove", "zero out"])
def test_epsilon_is_that_of_dp_accounting_s_own_accountant(rate, noise, steps, relation) -> None:
    theirs = {
        "add or remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        # One element is replaced by one that adds nothing, in a record of the same length.
        "zero out": NeighboringRelation.REPLACE_SPECIAL,
    }[relation]
    exact = by_their_pld(theirs, noise, rate, steps, 1e-4)
    ours = epsilon_pld(noise, [Event(relation=relation, rate=rate, steps=steps)], DELTA)
    assert ours == pytest.approx(exact, rel=5e-3)


def test_a_replaced_unit_costs_what_dp_accounting_says_without_sampling_and_no_less_with_coins() -> None:
    replaced = NeighboringRelation.REPLACE_ONE
    exact = by_their_pld(replaced, 20.0, 1.0, 25, 1e-4)
    assert epsilon_pld(20.0, draws(1.0, 25), DELTA) == pytest.approx(exact, rel=5e-3)
    for rate, noise, steps in ((0.05, 3.0, 200), (0.3, 6.0, 50)):
        # The unit's coin is the same in both data sets; ours covers that, and a seat that somebody else takes.
        coins = by_their_pld(replaced, noise, rate, steps, 1e-3)
        assert coins <= epsilon_pld(noise, draws(rate, steps), DELTA)


# Draws without replacement


def draws(rate: float, steps: int) -> list[Event]:
    return [Event(relation="replace", rate=rate, steps=steps)]


@pytest.mark.parametrize("noise", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_one_draw_without_replacement_is_balle_s_theorem(noise: float, rate: float, delta: float) -> None:
    # Balle, Barthe & Gaboardi 2018, Theorem 9: δ'(log(1 + q(e^ε − 1))) = q δ(ε), δ being the unsampled mechanism's.
    if delta / rate >= delta_gaussian(0.0, 2 / noise):
        pytest.skip("δ alone covers it")
    unsampled = epsilon_gaussian(2 / noise, delta / rate)
    exact = math.log1p(rate * math.expm1(unsampled))
    assert epsilon_pld(noise, draws(rate, 1), delta) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 4.0, 500), (0.1, 8.0, 100), (0.3, 20.0, 200)])
def test_draws_without_replacement_cost_less_than_by_renyi_and_no_less_than_a_pair_of_data_sets_shows(
    rate: float, noise: float, steps: int
) -> None:
    ours = epsilon_pld(noise, draws(rate, steps), DELTA)
    assert ours <= epsilon_rdp(noise, draws(rate, steps), DELTA)
    assert ours < epsilon_pld(noise, draws(1.0, steps), DELTA)
    # All others at −C, and one at C instead: that pair's loss is the Poisson one's towards removal, at half the noise.
    shown = epsilon_pld(noise / 2, poisson(rate, steps), DELTA)
    assert shown * (1 - 1e-3) <= ours <= 1.25 * shown


def test_rounds_of_all_clients_without_replacement_are_a_gaussian_mechanism() -> None:
    assert epsilon_pld(20.0, draws(1.0, 25), DELTA) == pytest.approx(epsilon_gaussian(2 * 5 / 20.0, DELTA), rel=1e-4)


def test_prv_does_not_speak_of_draws_without_replacement() -> None:
    with pytest.raises(InputError, match="without replacement"):
        epsilon_prv(1.0, draws(0.1, 5), DELTA)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.01, 0.9),
    noise=st.floats(1.0, 10.0),
    steps=st.integers(1, 60),
    relation=st.sampled_from(["add or remove", "replace", "zero out"]),
)
def test_more_rounds_a_larger_rate_and_less_noise_never_lower_epsilon(rate, noise, steps, relation) -> None:
    def epsilon(rate: float, noise: float, steps: int) -> float:
        return epsilon_pld(noise, [Event(relation=relation, rate=rate, steps=steps)], DELTA)

    slack = 1 + 3e-4  # the grid's width
    least = epsilon(rate, noise, steps)
    assert epsilon(rate, noise, steps + 5) * slack >= least
    assert epsilon(min(1.0, 1.2 * rate), noise, steps) * slack >= least
    assert epsilon(rate, 0.8 * noise, steps) * slack >= least


@settings(max_examples=15, deadline=None)
@given(st.permutations([(0.1, 5), (0.5, 2), (1.0, 3)]))
def test_the_order_of_composition_does_not_matter_to_epsilon(order) -> None:
    relations = {0.1: "add or remove", 0.5: "replace", 1.0: "zero out"}
    events = [Event(relation=relations[rate], rate=rate, steps=steps) for rate, steps in order]
    first = [Event(relation=relations[rate], rate=rate, steps=steps) for rate, steps in sorted(order)]
    assert epsilon_pld(5.0, events, DELTA) == epsilon_pld(5.0, first, DELTA)


@pytest.mark.parametrize("epsilon", [0.0, 0.049, 501.0, math.inf, math.nan, -1.0])
def test_an_epsilon_outside_the_range_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"epsilon.*at least 0\.05 and at most 500"):
        calibrate(epsilon, DELTA, poisson(0.1, 10))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1e-13, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(InputError, match="delta"):
        calibrate(1.0, delta, poisson(0.1, 10))
    with pytest.raises(InputError, match="delta"):
        epsilon_pld(1.0, poisson(0.1, 10), delta)


def test_impossible_events_and_noise_are_refused() -> None:
    with pytest.raises(InputError, match="rate"):
        epsilon_pld(1.0, poisson(1.5, 10), DELTA)
    with pytest.raises(InputError, match="steps"):
        epsilon_pld(1.0, poisson(0.5, -1), DELTA)
    with pytest.raises(InputError, match="noise_multiplier"):
        epsilon_pld(-1.0, poisson(0.5, 1), DELTA)
    with pytest.raises(InputError, match="at least one client"):
        calibrate_worst(1.0, DELTA, [])


def test_a_statement_reads_as_a_sentence_with_all_that_epsilon_depends_on() -> None:
    statement = PrivacyStatement(
        epsilon=8.0,
        delta=1e-5,
        unit="example",
        relation="add or remove one example",
        accountant="PLD",
        sampler="Poisson, rate 0.11, 260 steps",
        view="released_model",
    )
    assert statement.in_words() == (
        "Against the view released_model, one example is protected with ε = 8 at δ = 1e-05 "
        "(add or remove one example), as accounted by PLD for Poisson, rate 0.11, 260 steps."
    )


def test_a_statement_of_no_finite_epsilon_is_refused() -> None:
    words = {"relation": "add or remove", "accountant": "PLD", "sampler": "Poisson", "view": "server"}
    with pytest.raises(InputError, match="epsilon"):
        PrivacyStatement(epsilon=math.inf, delta=1e-5, unit="example", **words)
    with pytest.raises(InputError, match="unit"):
        PrivacyStatement(epsilon=1.0, delta=1e-5, unit="user", **words)


def test_no_guarantee_says_why_and_counts_as_infinite() -> None:
    none = NoGuarantee("the server sees each update before the noise is added", "client", "server")
    assert none.epsilon == math.inf
    assert none.in_words() == (
        "Against the view server, one client has no guarantee (ε = ∞): "
        "the server sees each update before the noise is added."
    )
