"""Client-level DP through the engine: its noise, its denominators, and what it promises to whom."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time

import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from defenses import dp_fedavg
from defenses.accounting import Event, epsilon_pld
from defenses.base import Defense
from defenses.bounds import epsilon_gaussian
from defenses.dp_fedavg import DPFedAvg
from defenses.statements import Gaussians, NoGuarantee, PrivacyStatement
from fl_core.aggregation import Krum, Median
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedbn import FedBN
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import run
from fl_core.fleet import Buffered
from fl_core.participation import Cyclic, Everyone, ParticipationEvent, PoissonClients, Uniform
from fl_core.sampling import Shuffled
from tests.federations import CLIENTS, AllBut, black, federation, flat, linear, play, prepared
from tests.plans import plan

CLIP, SIGMA = 0.3, 1.7
VIEWS = ("released_model", "participant", "secure_server", "server")
SIZES = torch.tensor([1, 2, 3, 4, 6, 8])
BY_EXAMPLES = FedAvg(sampler=Shuffled(batch_size=2), lr=0.5, weighting="by_examples")


def defense(**changes) -> DPFedAvg:
    return DPFedAvg(**({"delta": 1e-5, "clip_norm": CLIP, "noise_multiplier": SIGMA} | changes))


def assert_normal(noise: Tensor, deviation: float) -> None:
    """Independent zero-mean normals of this deviation; false alarm 3e-6."""
    values = noise.flatten().double() / deviation
    squares, size = values.square().sum().item(), len(values)
    assert 2 * min(chi2.cdf(squares, size), chi2.sf(squares, size)) > 1e-6
    assert 2 * norm.sf(abs(values.sum().item()) / math.sqrt(size)) > 1e-6
    # A value times the one after it has mean 0 and variance 1.
    assert 2 * norm.sf(abs((values[1:] * values[:-1]).sum().item()) / math.sqrt(size - 1)) > 1e-6


def moves(seen, rounds: int) -> Tensor:
    """How far the model went in each round [rounds, replicas, parameters]."""
    models = [flat(seen.models[round], 1) for round in range(rounds)] + [flat(seen.model, 1)]
    return torch.stack([after - before for before, after in itertools.pairwise(models)])


# Noise, through the engine; no picture has a light pixel, so that updates are zero.


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 1 / 6),
        ({"participation": Uniform(cohort=2)}, 1 / 2),
        ({"participation": PoissonClients(0.25)}, 1 / 1.5),
        ({"sizes": SIZES, "algorithm": BY_EXAMPLES}, 8 / 24),
        ({"sizes": SIZES, "algorithm": BY_EXAMPLES, "defense": defense(weight_cap=4.0)}, 1 / (6 * 18 / 4 / 6)),
    ],
    ids=["everyone", "uniform", "poisson", "by examples", "capped"],
)
def test_the_server_s_noise_is_sigma_times_the_clip_times_the_largest_share(changes, share):
    whole = prepared(**({"data": black(), "defense": defense(), "rounds": 3, "replica_ids": range(2)} | changes))
    _, seen = play(whole)
    assert_normal(moves(seen, 3), SIGMA * CLIP * share)
    assert all(float(flat(total, 1).abs().max()) == 0 for total in seen.sums.values()), "the sum comes before the noise"


def test_an_adaptive_clip_s_noise_follows_it_and_leaves_room_for_the_count():
    made = defense(clipping="adaptive", quantile_noise=2.0)
    _, seen = play(prepared(data=black(), defense=made, rounds=6, replica_ids=range(2)))
    clips = torch.stack([seen.models[round]["clip/updates"] for round in range(6)]).double()
    assert (clips[1:] != clips[:-1]).all()
    vectors = (SIGMA**-2 - 4.0**-2) ** -0.5
    models = {round: {"w": seen.models[round]["1.weight"]} for round in range(6)}
    moved = moves(dataclasses.replace(seen, models=models, model={"w": seen.model["1.weight"]}), 6)
    assert_normal(moved / clips[..., None], vectors / 6)
    # Zero updates are all short: the clip falls by exp(-.2 (1 - .5 + noise)), the count's noise being 2/6 of a share.
    shares = -(clips[1:] / clips[:-1]).log() / 0.2 - 0.5
    squares = (shares / (2 / 6)).square().sum().item()
    assert 2 * min(chi2.cdf(squares, 10), chi2.sf(squares, 10)) > 1e-6


def test_clients_noise_is_all_on_each_update():
    made = defense(noise_by="clients")
    _, seen = play(prepared(data=black(), defense=made, rounds=2, replica_ids=range(2)))
    assert_normal(torch.stack([flat(updates, 2) for updates in seen.updates.values()]), SIGMA * CLIP)
    assert_normal(moves(seen, 2), SIGMA * CLIP / math.sqrt(6))


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_cohort_of_nobody_releases_noise_alone_and_the_model_still_moves(clipping, algorithm):
    sampler = Shuffled(batch_size=2)
    kind = FedAvg(sampler=sampler, lr=0.5) if algorithm == "fedavg" else SCAFFOLD(sampler=sampler, lr=0.5)
    made = defense(clipping=clipping, quantile_noise=50.0)
    changes = {
        "participation": AllBut(rate=0.5, absent=tuple(range(6))),
        "algorithm": kind,
        "rounds": 2,
        "data": black(),
    }
    _, seen = play(prepared(defense=made, **changes))
    assert all(cohort.shape == (1, 0) for cohort in seen.cohorts.values())
    spent = (SIGMA**-2 - 100.0**-2) ** -0.5 if clipping == "adaptive" else SIGMA
    weights = [seen.models[0]["1.weight"], seen.models[1]["1.weight"], seen.model["1.weight"]]
    for round in range(2):
        clip = float(seen.models[round].get("clip/updates", torch.tensor(CLIP)))
        assert_normal(weights[round + 1] - weights[round], spent * clip / 3)


def test_noise_is_the_same_in_bits_when_a_run_is_resumed_and_differs_between_replicas():
    whole = prepared(defense=defense(clipping="adaptive"), rounds=4, replica_ids=range(2))
    states = []
    done = run(whole, after_round=states.append)
    again = run(whole, state=type(states[1]).from_tensors(states[1].tensors()))
    assert all(torch.equal(value, again.tensors()[name]) for name, value in done.tensors().items())
    assert not (done.model["1.weight"][0] == done.model["1.weight"][1]).any()


# Denominators


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("noise_by", ["server", "clients"])
def test_who_is_absent_takes_away_its_own_part_and_changes_nothing_else(weighted, noise_by):
    changes = {"defense": defense(noise_by=noise_by)} | ({"sizes": SIZES, "algorithm": BY_EXAMPLES} if weighted else {})
    _, everyone = play(prepared(participation=AllBut(rate=0.5), **changes))
    for client in (0, 5):
        _, others = play(prepared(participation=AllBut(rate=0.5, absent=(client,)), **changes))
        kept = [each for each in range(CLIENTS) if each != client]
        assert torch.equal(flat(everyone.updates[0], 2)[:, kept], flat(others.updates[0], 2))
        assert torch.equal(everyone.weights[0][:, kept], others.weights[0])
        part = everyone.weights[0][:, client, None].double() * flat(everyone.updates[0], 2)[:, client]
        torch.testing.assert_close(flat(everyone.sums[0], 1) - flat(others.sums[0], 1), part, rtol=0, atol=1e-6)


def test_weights_are_public_sizes_over_the_cap_and_at_most_one():
    for cap, weights in ((None, SIZES / 8), (4.0, (SIZES / 4).clamp(max=1)), (100.0, SIZES / 100)):
        whole = prepared(sizes=SIZES, algorithm=BY_EXAMPLES, defense=defense(weight_cap=cap))
        _, seen = play(whole)
        # The cohort's expected weight divides, whatever the clients really hold.
        torch.testing.assert_close(seen.weights[0][0], weights / weights.sum())
        few = dataclasses.replace(whole, members=torch.arange(24)[None] < 15)
        torch.testing.assert_close(play(few)[1].weights[0], seen.weights[0])


# What is promised


def stated(made: DPFedAvg, view: str, unit, **changes) -> PrivacyStatement | NoGuarantee:
    return made.guarantee(view, unit, plan(**changes))


POISSON = {"participation": ParticipationEvent("poisson", 0.1, 20), "exact": False}
UNIFORM = {"participation": ParticipationEvent("uniform", 0.5, 20), "cohort": 5.0}
CYCLIC = {"participation": ParticipationEvent("cyclic", 0.5, 10), "cohort": 5.0, "clients": 20}
HALF = {"patterns": frozenset([tuple(range(0, 20, 2)), tuple(range(3))])}


@pytest.mark.parametrize("unit", ["client", "example"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "name", ["fixed", "poisson", "poisson fleet", "uniform", "uniform kept", "cyclic", "available"]
)
def test_noise_by_the_server_is_accounted_view_by_view_as_documented(name, view, unit):
    changes = {
        "fixed": HALF,
        "poisson": POISSON | HALF,
        "poisson fleet": POISSON | HALF | {"ideal": False},
        "uniform": UNIFORM | HALF,
        "uniform kept": UNIFORM | HALF | {"stateless": False},
        "cyclic": CYCLIC | HALF,
        "available": {"participation": ParticipationEvent("availability", 1.0, 20), "exact": False} | HALF,
    }[name]
    found = stated(defense(), view, unit, **changes)
    if view in ("secure_server", "server"):
        assert isinstance(found, NoGuarantee)
        assert "adds the noise itself" in found.reason
        return
    replaced = "replace" if unit == "example" else None
    rounds = 10 if name == "cyclic" else 20
    participant = view == "participant"
    event = {
        "poisson": Event(relation=replaced or "add or remove", rate=0.1, steps=20),
        "uniform": Event(relation="replace", rate=5 / 9 if participant else 0.5, steps=rounds),
        "cyclic": Event(relation="replace", rate=5 / 9 if participant else 0.5, steps=rounds),
    }.get(name, Event(relation=replaced or "zero out", rate=1.0, steps=10))
    assert found == PrivacyStatement.of(Gaussians(SIGMA, event), delta=1e-5, unit=unit, view=view)
    assert found.epsilon == epsilon_pld(SIGMA, [event], 1e-5)
    words = {"poisson": "Poisson, rate 0.1, 20 steps"}.get(name, "10 steps without amplification")
    if name in ("uniform", "cyclic"):
        words = f"draws without replacement, rate {event.rate:.4g}, {rounds} steps"
    assert found.sampler == words or (name == "poisson" and unit == "example")
    relation = {"add or remove": "add or remove one client", "zero out": "zero out one client's part"}
    assert found.relation == relation.get(event.relation, f"replace one {unit}")


@pytest.mark.parametrize("unit", ["client", "example"])
@pytest.mark.parametrize(
    ("changes", "noises"),
    [
        ({}, {"server": 1, "secure_server": 10, "participant": 9, "released_model": 10}),
        ({"even": False}, dict.fromkeys(VIEWS, 1)),
        (POISSON, dict.fromkeys(VIEWS, 1)),
        ({"cohort": 1.0, "participation": ParticipationEvent("fixed", 1.0, 20)}, dict.fromkeys(VIEWS, 1)),
    ],
    ids=["everyone", "uneven", "poisson", "alone"],
)
def test_noise_by_clients_counts_for_as_many_as_a_view_sees_summed(changes, noises, unit):
    relation = "zero out" if unit == "client" else "replace"
    for view, noise in noises.items():
        found = stated(defense(noise_by="clients"), view, unit, **changes)
        event = Event(relation=relation, rate=1.0, steps=20)
        assert found == PrivacyStatement.of(
            Gaussians(SIGMA * math.sqrt(noise), event), delta=1e-5, unit=unit, view=view
        )


def test_a_view_that_sees_less_is_promised_no_less():
    for made in (defense(), defense(noise_by="clients")):
        for changes in ({}, UNIFORM, POISSON, CYCLIC):
            for unit in ("client", "example"):
                found = {view: stated(made, view, unit, **changes) for view in VIEWS}
                for less, more in (
                    ("released_model", "participant"),
                    ("released_model", "secure_server"),
                    ("participant", "server"),
                    ("secure_server", "server"),
                ):
                    # What amplifies by a draw without replacement replaces a client, and is not to be compared.
                    if isinstance(found[more], NoGuarantee) or found[more].relation == found[less].relation:
                        assert found[less].epsilon <= found[more].epsilon


def test_the_engine_s_plan_says_who_keeps_something_between_turns():
    sampler = Shuffled(batch_size=2)
    for algorithm, stateless in (
        (FedAvg(sampler=sampler, lr=0.5), True),
        (SCAFFOLD(sampler=sampler, lr=0.5), False),
        (FedBN(sampler=sampler, lr=0.5, local_layers=["*bias"]), False),
    ):
        whole = federation(
            algorithm=algorithm, defense=defense(), model=linear(bias=True), participation=Uniform(cohort=3)
        )
        assert whole.plan.stateless == stateless
        amplified = stated_for(whole, "released_model").sampler.startswith("draws without replacement")
        assert amplified == stateless


def stated_for(whole, view) -> PrivacyStatement:
    found = whole.defense.guarantee(view, "client", whole.plan)
    assert isinstance(found, PrivacyStatement)
    return found


@pytest.mark.parametrize("kind", ["everyone", "poisson", "uniform", "cyclic"])
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0, 500.0])
@pytest.mark.parametrize("noise_by", ["server", "clients"])
def test_the_epsilon_that_was_asked_is_reached_from_below_and_soon(kind, epsilon, noise_by):
    changes = {"everyone": {}, "poisson": POISSON, "uniform": UNIFORM, "cyclic": CYCLIC}[kind]
    here = plan(**changes)
    began = time.process_time()
    ready = defense(noise_multiplier=None, epsilon=epsilon, noise_by=noise_by).prepare(here)
    assert time.process_time() - began < 5
    assert isinstance(ready, DPFedAvg)
    found = ready.guarantee("participant" if noise_by == "server" else "server", "client", here)
    assert epsilon * 0.998 <= found.epsilon <= epsilon
    weaker = ready.guarantee("released_model", "client", here)
    assert weaker.epsilon <= found.epsilon


def test_given_noise_is_accounted_as_it_is():
    made = defense(noise_multiplier=4.0)
    ready = made.prepare(plan())
    assert ready == made
    assert stated(made, "released_model", "client").epsilon == pytest.approx(
        epsilon_gaussian(math.sqrt(20) / 4.0, 1e-5), rel=1e-4
    )


def test_an_infinite_epsilon_is_no_defence_at_all():
    made = defense(noise_multiplier=None, epsilon=math.inf)
    whole = prepared(defense=made)
    assert type(whole.defense) is Defense
    plain, bare = run(whole), run(federation(defense=Defense()))
    assert all(torch.equal(value, bare.model[name]) for name, value in plain.model.items())
    with pytest.raises(RuntimeError, match="calibrated"):
        made.guarantee("released_model", "client", plan())


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (defense(), {"streams": False}, "set aggregator=mean"),
        (defense(), {"synchronous": False}, "choose a synchronous fleet"),
        (defense(clipping="adaptive"), {"even": False}, r"algorithm\.weighting=uniform"),
        (defense(clipping="adaptive", quantile_noise=0.1), {}, "above half the noise multiplier"),
        (
            defense(noise_multiplier=None, epsilon=1.0, clipping="adaptive", quantile_noise=0.1),
            {},
            "above half the noise",
        ),
    ],
)
def test_plans_in_which_a_client_s_part_is_not_bounded_are_refused_in_one_line(made, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        made.prepare(plan(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("aggregator", [Median(), Krum(byzantine=1)])
def test_the_engine_refuses_a_robust_aggregator_even_where_nobody_prepared_the_defence(aggregator):
    algorithm = FedAvg(sampler=Shuffled(batch_size=2), lr=0.5, aggregator=aggregator)
    with pytest.raises(InputError, match="set aggregator=mean"):
        run(federation(algorithm=algorithm, defense=defense()))


def test_the_engine_refuses_an_asynchronous_fleet():
    fleet = Buffered(devices=Devices(example_seconds=1.0), concurrency=5, buffer=3)
    with pytest.raises(InputError, match="choose a synchronous fleet"):
        run(federation(fleet=fleet, participation=Everyone(), defense=defense()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0, "noise_multiplier": None},
        {"epsilon": -1.0, "noise_multiplier": None},
        {"epsilon": 0.01, "noise_multiplier": None},
        {"epsilon": 501.0, "noise_multiplier": None},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clip_norm": 0.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"noise_by": "nobody"},
        {"weight_cap": 0.0},
        {"quantile_noise": 0.0},
        {"clipping": "adaptive", "noise_by": "clients"},
    ],
)
def test_numbers_that_protect_nothing_are_refused_in_one_line(wrong):
    with pytest.raises(InputError, match=rf"defense\.{next(iter(wrong))}") as refused:
        defense(**wrong)
    assert "\n" not in str(refused.value)


def test_block_cyclic_clients_amplify_inside_their_block_and_take_their_turns():
    whole = federation(participation=Cyclic(cohort=2, groups=2), rounds=5, defense=defense())
    found = whole.defense.guarantee("released_model", "client", whole.plan)
    assert found.sampler == "draws without replacement, rate 0.6667, 3 steps"
    assert whole.defense.guarantee("participant", "client", whole.plan).sampler == "3 steps without amplification"
    assert dp_fedavg.in_the_open(whole.plan, "client").steps <= 3
