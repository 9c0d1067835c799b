"""DP-FTRL through the engine: the covariance of its noise, what it keeps and shows, and what it promises."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from defenses.base import Defense
from defenses.bounds import epsilon_gaussian
from defenses.dp_ftrl import DPFTRL, least_error
from defenses.factorisation import BandedSquareRoot, Factorisation, Tree
from defenses.statements import NoGuarantee, PrivacyStatement
from fl_core.aggregation import Median
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedopt import FedAvgM
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.participation import Cyclic, PoissonClients, Uniform
from fl_core.sampling import Shuffled
from fl_core.state import State
from fl_core.views import Participant, Recorder
from tests.federations import AllBut, black, federation, flat, play, prepared
from tests.plans import plan

CLIP, SIGMA = 0.3, 1.7
KINDS = {"tree": {"factorisation": "tree"}, "banded": {"band": 3}, "independent": {"band": 1}, "whole": {"band": 6}}
kinds = pytest.mark.parametrize("kind", KINDS)


def defense(**changes) -> DPFTRL:
    return DPFTRL(**({"delta": 1e-5, "clip_norm": CLIP, "noise_multiplier": SIGMA} | changes))


def square_root(noise: Factorisation) -> Tensor:
    """B of A = B·C, A being the prefix sums."""
    encoder = np.stack([noise.encode([round]) for round in range(noise.rounds)], 1)
    return torch.from_numpy(np.tril(np.ones_like(encoder)) @ np.linalg.inv(encoder))


def prefixes(seen, rounds: int) -> Tensor:
    """How far the model is from the first one after each round [rounds, replicas · parameters]."""
    models = [flat(seen.models[round], 1) for round in range(rounds)] + [flat(seen.model, 1)]
    return torch.stack([(model - models[0]).flatten() for model in models[1:]])


# Without a light pixel in any picture updates are zero, and the model's path is the noise on the prefix sums.


@pytest.mark.parametrize("participation", [Cyclic(cohort=None, groups=2), AllBut(rate=0.5, absent=(1,))])
@kinds
def test_the_noise_on_prefix_sums_has_the_covariance_of_the_factorisation(kind, participation):
    rounds = 6
    whole = prepared(
        data=black(), defense=defense(**KINDS[kind]), participation=participation, rounds=rounds, replica_ids=range(2)
    )
    noise = Tree(rounds=rounds) if kind == "tree" else BandedSquareRoot(rounds=rounds, band=KINDS[kind]["band"])
    every = isinstance(participation, AllBut)
    patterns = [tuple(range(6))] if every else [(0, 2, 4), (1, 3, 5)]
    assert whole.defense.sensitivity == max(float(np.linalg.norm(noise.encode(pattern))) for pattern in patterns)
    scale = SIGMA * whole.defense.sensitivity * CLIP / 3
    _, seen = play(whole)
    independent = torch.linalg.solve(square_root(noise) * scale, prefixes(seen, rounds))
    # Independent standard normals [rounds, 1536]; false alarm 1e-6 for each of 6 + 15 tests.
    size = independent.shape[1]
    for row, one in enumerate(independent):
        squares = float(one.square().sum())
        assert 2 * min(chi2.cdf(squares, size), chi2.sf(squares, size)) > 1e-6
        for other in independent[:row]:
            assert 2 * norm.sf(abs(float((one * other).sum())) / math.sqrt(size)) > 1e-6


@kinds
def test_a_run_resumed_in_the_middle_goes_on_with_the_same_noise(kind):
    whole = prepared(defense=defense(**KINDS[kind]), rounds=6, replica_ids=range(2))
    kept: list[dict[str, Tensor]] = []
    done = run(whole, after_round=lambda s: kept.append({name: value.clone() for name, value in s.tensors().items()}))
    for at in (0, 2, 4):
        again = run(whole, state=State.from_tensors(kept[at]))
        assert all(torch.equal(value, again.tensors()[name]) for name, value in done.tensors().items())
    memory = {"tree": 0, "banded": 2, "independent": 0, "whole": 5}[kind]
    assert sum(value[0].numel() for value in done.defense.values()) == memory * 48


@pytest.mark.parametrize("algorithm", ["fedavg", "fedavgm", "scaffold"])
def test_past_noise_is_in_nothing_that_a_participant_is_sent(algorithm):
    sampler = Shuffled(batch_size=2)
    made = {
        "fedavg": FedAvg(sampler=sampler, lr=0.5),
        "fedavgm": FedAvgM(sampler=sampler, lr=0.5),
        "scaffold": SCAFFOLD(sampler=sampler, lr=0.5),
    }[algorithm]
    recorder = Recorder(view=Participant)
    done = run(prepared(defense=defense(band=3), algorithm=made, rounds=4), recorder)
    assert done.defense.keys() >= {"past noise/1.weight"}
    sent = recorder.observation().models
    assert len(sent) == 4
    for model in sent.values():
        assert model.keys() == ({"1.weight", "control/1.weight"} if algorithm == "scaffold" else {"1.weight"})


class Unchecked(DPFTRL):
    """Runs where nobody ever comes, which no noise is scaled for."""

    def check(self, plan) -> None: ...


def test_a_round_without_anybody_releases_its_noise():
    whole = prepared(
        data=black(), defense=defense(factorisation="tree"), participation=AllBut(rate=0.5, absent=(0, 2)), rounds=3
    )
    nobody = AllBut(rate=0.5, absent=tuple(range(6)))
    empty = dataclasses.replace(whole, participation=nobody, defense=Unchecked(**vars(whole.defense)))
    (some, _), (none, seen) = play(whole), play(empty)
    assert all(cohort.shape == (1, 0) for cohort in seen.cohorts.values())
    assert torch.equal(some.model["1.weight"], none.model["1.weight"])


# What is promised


@kinds
@pytest.mark.parametrize("unit", ["client", "example"])
def test_the_whole_run_is_one_gaussian_mechanism(kind, unit):
    here = plan(rounds=6, patterns=frozenset([(0, 3), (1, 4, 5)]))
    ready = defense(**KINDS[kind]).prepare(here)
    for view in ("released_model", "participant"):
        found = ready.guarantee(view, unit, here)
        assert isinstance(found, PrivacyStatement)
        clips = 1 if unit == "client" else 2
        assert found.epsilon == pytest.approx(epsilon_gaussian(clips / SIGMA, 1e-5), rel=1e-4)
        assert found.relation == ("zero out one client's part" if unit == "client" else "replace one example")
        band = KINDS[kind].get("band")
        correlated = "independent noise" if band == 1 else f"noise correlated over {band} rounds"
        how = "a tree's noise" if kind == "tree" else correlated
        assert found.sampler == f"{how} in 6 rounds, at most 3 of them a client's, without amplification"
    for view in ("server", "secure_server"):
        assert isinstance(ready.guarantee(view, unit, here), NoGuarantee)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0, 500.0])
@pytest.mark.parametrize("participation", [PoissonClients(0.4), Uniform(cohort=2)])
def test_the_epsilon_that_was_asked_is_reached_from_below(epsilon, participation):
    whole = prepared(defense=defense(noise_multiplier=None, epsilon=epsilon), participation=participation, rounds=8)
    found = whole.defense.guarantee("participant", "client", whole.plan)
    assert 0.998 * epsilon <= found.epsilon <= epsilon


def test_the_band_is_the_best_for_this_plan():
    assert defense().prepare(plan()).band == 1, "independent noise where everybody is always there"
    once = plan(rounds=16, patterns=frozenset((round,) for round in range(16)))
    cyclic = plan(rounds=16, patterns=frozenset(tuple(range(first, 16, 6)) for first in range(6)))
    for here in (once, cyclic):
        band = defense().prepare(here).band
        errors = {each: BandedSquareRoot(rounds=16, band=each).rms_error(list(here.patterns)) for each in range(1, 17)}
        assert 1 < band == least_error(16, here.patterns) <= 16
        tried = {1, 2, 4, 8, 16} | ({6} if here is cyclic else set())
        assert errors[band] == min(errors[each] for each in tried)
        assert errors[band] <= 1.02 * min(errors.values())
    assert defense(band=2).prepare(cyclic).band == 2, "one that is asked for stays"
    assert type(defense(noise_multiplier=None).prepare(cyclic)) is Defense


def test_noise_made_for_seldom_clients_is_refused_for_frequent_ones():
    seldom, often = (plan(rounds=6, patterns=frozenset([rounds])) for rounds in ((0, 4), (0, 2, 4)))
    ready = defense(band=2).prepare(seldom)
    assert ready.guarantee("participant", "client", seldom).epsilon > 0
    with pytest.raises(InputError, match="prepared for clients that come less often"):
        ready.guarantee("participant", "client", often)
    with pytest.raises(InputError, match="prepared for clients that come less often"):
        run(federation(defense=ready, rounds=6))
    assert ready.prepare(often).sensitivity > ready.sensitivity
    # A longer run is not covered either.
    with pytest.raises(InputError, match="round"):
        ready.guarantee("participant", "client", plan(rounds=7, patterns=frozenset([(6,)])))


def test_nothing_runs_unprepared():
    for use in (
        lambda: run(federation(defense=defense())),
        lambda: defense().guarantee("participant", "client", plan()),
    ):
        with pytest.raises(RuntimeError, match=r"prepare\(\)"):
            use()


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (defense(), {"streams": False}, "set aggregator=mean"),
        (defense(), {"synchronous": False}, "choose a synchronous fleet"),
        (defense(band=21), {}, "only 20 rounds"),
    ],
)
def test_plans_that_it_does_not_cover_are_refused_in_one_line(made, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        made.prepare(plan(**changes))
    assert "\n" not in str(refused.value)
    if "streams" in changes:
        algorithm = FedAvg(sampler=Shuffled(batch_size=2), lr=0.5, aggregator=Median())
        with pytest.raises(InputError, match=message):
            run(federation(defense=made.prepare(plan()), algorithm=algorithm))


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping": "adaptive"},
        {"factorisation": "matrix"},
        {"band": 0},
        {"band": 2, "factorisation": "tree"},
        {"clip_norm": 0.0},
        {"delta": 1.0},
        {"noise_multiplier": 0.0},
        {"epsilon": -1.0, "noise_multiplier": None},
        {"weight_cap": 0.0},
    ],
)
def test_numbers_that_protect_nothing_are_refused_in_one_line(wrong):
    with pytest.raises(InputError, match=rf"defense\.{next(iter(wrong))}") as refused:
        defense(**wrong)
    assert "\n" not in str(refused.value)
