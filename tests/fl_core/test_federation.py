"""Rounds against numbers worked out by hand, and what a run may and may not depend on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from defenses.base import Defense
from defenses.dp_sgd import DPSGD
from fl_core import lanes
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.data import ImageSet
from fl_core.defended import Senders, Summed
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, public_sizes, run
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Uniform
from fl_core.sampling import Poisson, SamplingEvent, Shuffled
from fl_core.seeds import generator
from fl_core.state import State
from fl_core.views import Recorder, Server

DP = DPSGD(epsilon=1.0, delta=1e-5, clip_norm=0.5, noise_multiplier=0.8)


class Tiny(nn.Module):
    """Two classes, one pixel, no bias: logits = weight * pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(pixels.flatten(1))
        return scores


def by_hand(*, weighting: str, rounds: int = 2, server_lr: float = 1.0, local_epochs: int = 1) -> Federation:
    """Client 0 holds one example (pixel 1, class 0), client 1 three equal ones (pixel 1/2, class 1)."""
    pixels = torch.tensor([1.0, 0.5, 0.5, 0.5]).view(4, 1, 1, 1)
    return Federation(
        model=Tiny(),
        data=ImageSet(pixels, torch.tensor([0, 1, 1, 1]), ("a", "b")),
        owners=torch.tensor([0, 1, 1, 1]),
        members=torch.ones(1, 4, dtype=torch.bool),
        sizes=torch.tensor([1, 3]),
        algorithm=FedAvg(
            sampler=Shuffled(local_epochs=local_epochs, batch_size=4),
            lr=1.0,
            weighting=weighting,
            server_lr=server_lr,
        ),
        defense=Defense(),
        rounds=rounds,
        run=0,
        replica_ids=[0],
        backend="vmap",
    )


def play(federation: Federation, *, model: Tree | None = None, **options: Any) -> tuple[Tree, Server]:
    recorder = Recorder(view=Server)
    if model is not None:
        options["state"] = dataclasses.replace(initial_state(federation), model=model)
    finished = run(federation, recorder, **options)
    observation = recorder.observation()
    assert isinstance(observation, Server)
    return finished.model, observation


def zero() -> Tree:
    return {"head.weight": torch.zeros(1, 2, 1)}


@pytest.mark.parametrize(
    ("weighting", "first", "second"),
    [
        # Round 1 at weight 0, where both classes have p = 1/2: in the first class's weight client 0 moves by
        # (1-p)·1 = .5 and client 1 by -p·.5 = -.25; the second class's weight moves by the opposite.
        # Uniform: .125; then p0 = σ(.25) = .562177, p1 = σ(.125) = .531209: .125 + (.437823 - .265605)/2.
        ("uniform", 0.125, 0.211109),
        # By examples, 1/4 and 3/4: -.0625; p0 = σ(-.125), p1 = σ(-.0625): -.0625 + .531209/4 - .242190·3/4.
        ("by_examples", -0.0625, -0.111340),
    ],
)
def test_two_rounds_of_fedavg_are_the_numbers_worked_out_by_hand(weighting, first, second):
    model, seen = play(by_hand(weighting=weighting), model=zero())
    assert seen.updates[0]["head.weight"].flatten().tolist() == [0.5, -0.5, -0.25, 0.25]
    assert seen.models[1]["head.weight"].flatten().tolist() == [first, -first]
    torch.testing.assert_close(model["head.weight"].flatten(), torch.tensor([second, -second]), rtol=0, atol=1e-6)


def test_the_server_s_learning_rate_scales_the_mean_update():
    model, _ = play(by_hand(weighting="uniform", rounds=1, server_lr=0.5), model=zero())
    assert model["head.weight"].flatten().tolist() == [0.0625, -0.0625]


def test_local_epochs_are_local_steps_from_the_moved_model():
    _, seen = play(by_hand(weighting="uniform", rounds=1, local_epochs=2), model=zero())
    # Client 0: w = .5, then p = σ(1); client 1: w = -.25, then p = σ(-.25).
    moved = [0.5 + (1 - 1 / (1 + math.exp(-1))), -0.25 - 0.5 / (1 + math.exp(0.25))]
    torch.testing.assert_close(seen.updates[0]["head.weight"][0, :, 0, 0], torch.tensor(moved))


def federation(**changes: Any) -> Federation:
    """Four replicas, five clients, 60 pictures of 6x6, half of them members, a small CNN."""
    draw = generator(0, "test data")
    examples, clients = 60, 5
    settings: dict[str, Any] = {
        "model": CNN((1, 6, 6), 3, width=4),
        "data": ImageSet(
            torch.rand(examples, 1, 6, 6, generator=draw),
            torch.randint(0, 3, (examples,), generator=draw),
            ("a", "b", "c"),
        ),
        "owners": torch.arange(examples) % clients,
        "members": torch.rand(4, examples, generator=draw) < 0.5,
        "sizes": torch.full((clients,), 6),
        "algorithm": FedAvg(sampler=Poisson(local_epochs=2, batch_size=2), lr=0.2, momentum=0.5),
        "defense": Defense(),
        "rounds": 3,
        "run": 0,
        "replica_ids": [0, 1, 2, 3],
        "participation": Uniform(cohort=3),
        "backend": "vmap",
    }
    return Federation(**(settings | changes))


def same_bits(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close(one: Tree, other: Tree) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("defense", [Defense(), DP])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_shards_of_replicas_give_the_whole_stack_s_numbers(backend: str, defense: Defense):
    whole = federation(backend=backend, defense=defense)
    shards = [dataclasses.replace(whole, members=whole.members[ids], replica_ids=ids) for ids in ([0, 1], [2, 3])]
    found, seen = play(whole)
    parts = [play(shard) for shard in shards]
    assert_close(found, {name: torch.cat([part[0][name] for part in parts]) for name in found})
    for round in range(whole.rounds):
        assert torch.equal(seen.cohorts[round], torch.cat([part[1].cohorts[round] for part in parts]))
        assert_close(
            seen.updates[round],
            {name: torch.cat([part[1].updates[round][name] for part in parts]) for name in found},
        )


@pytest.mark.parametrize("defense", [Defense(), DP])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_repeated_run_is_bit_identical(backend: str, defense: Defense):
    torch.manual_seed(1)
    first, one = play(federation(backend=backend, defense=defense))
    torch.manual_seed(2)
    second, other = play(federation(backend=backend, defense=defense))
    assert same_bits(first, second)
    assert same_bits(one.updates[2], other.updates[2])


def test_backends_give_a_federation_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "_fastest", {})
    for defense in (Defense(), DP):
        models = [play(federation(backend=each, defense=defense))[0] for each in ("vmap", "loop", "auto")]
        assert_close(models[0], models[1])
        assert_close(models[0], models[2])


def test_another_run_number_and_other_replicas_are_other_randomness():
    base = play(federation())[0]
    assert not same_bits(base, play(federation(run=1))[0])
    members = federation().members
    twins = play(federation(members=members[:1].repeat(4, 1)))[0]
    flat = twins["head.weight"].flatten(1)
    assert len(flat.unique(dim=0)) == 4, "replicas with equal members still differ in weights, batches and cohorts"


@pytest.mark.parametrize("defense", [Defense(), DP])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_resumed_run_is_the_uninterrupted_one_in_bits(backend: str, defense: Defense):
    kept: list[State] = []
    whole = federation(backend=backend, defense=defense, rounds=4)
    # The very tensors that `after_round` was given, not copies: later rounds must not change them.
    finished, seen = play(whole, after_round=kept.append)
    assert [state.round for state in kept] == [1, 2, 3, 4]
    resumed, again = play(whole, state=kept[1])
    assert same_bits(finished, resumed)
    assert sorted(again.updates) == [2, 3]
    for round in (2, 3):
        assert same_bits(seen.updates[round], again.updates[round])
        assert same_bits(seen.models[round], again.models[round])


def test_training_that_diverges_is_an_input_error_that_names_the_option():
    algorithm = FedAvg(sampler=Shuffled(local_epochs=2, batch_size=2), lr=1e30)
    with pytest.raises(InputError, match=r"training diverged in round 1: lower algorithm\.lr \(now 1e\+30\)"):
        run(federation(algorithm=algorithm), Recorder())


def test_a_cohort_is_drawn_without_replacement_and_uniformly():
    many = federation(sizes=torch.full((10,), 6), replica_ids=[0], members=torch.ones(1, 60).bool())
    cohorts = torch.cat([many.cohort(round).clients for round in range(2000)])
    assert cohorts.shape == (2000, 3)
    assert (cohorts.diff(dim=1) > 0).all(), "sorted and distinct"
    hits = cohorts.flatten().bincount(minlength=10).double()
    # For counts drawn without replacement this is chi-square with 9 degrees of freedom; false alarm 1e-6.
    statistic = ((hits - 600).square().sum() / (2000 * 0.3 * 0.7 * 10 / 9)).item()
    assert 2 * min(chi2.cdf(statistic, 9), chi2.sf(statistic, 9)) > 1e-6


def test_a_replica_s_cohort_does_not_depend_on_the_shard_and_changes_with_the_round():
    whole = federation()
    alone = dataclasses.replace(whole, members=whole.members[2:3], replica_ids=[2])
    rounds = [whole.cohort(round).clients for round in range(20)]
    for round, cohort in enumerate(rounds):
        assert torch.equal(alone.cohort(round).clients[0], cohort[2])
    assert len({tuple(cohort[2].tolist()) for cohort in rounds}) > 1
    assert len({tuple(row) for row in torch.stack(rounds)[:, :, 0].T.tolist()}) == 4


@pytest.mark.parametrize("cohort", [Everyone(), Uniform(cohort=5)])
def test_all_clients_take_part_where_the_cohort_is_everyone(cohort):
    assert federation(participation=cohort).cohort(0).clients.tolist() == [[0, 1, 2, 3, 4]] * 4


def test_each_update_is_its_client_s_own_and_only_members_train():
    # A client whose examples are no members takes no step; a cohort's others do not change its update.
    members = torch.zeros(4, 60, dtype=torch.bool)
    members[:, 1::5] = True  # client 1's examples
    algorithm = FedAvg(sampler=Shuffled(local_epochs=1, batch_size=4), lr=0.2)
    _, seen = play(federation(members=members, participation=Everyone(), algorithm=algorithm, rounds=1))
    update = seen.updates[0]["head.weight"]
    assert (update[:, [0, 2, 3, 4]] == 0).all()
    assert (update[:, 1].abs().amax((1, 2)) > 0).all()


def test_by_examples_weighs_by_the_members_that_a_client_really_holds():
    algorithm = FedAvg(sampler=Shuffled(local_epochs=1, batch_size=4), lr=0.2, weighting="by_examples")
    whole = federation(algorithm=algorithm, participation=Everyone(), rounds=1)
    _, seen = play(whole)
    held = torch.stack([(whole.members & (whole.owners == client)).sum(1) for client in range(5)], 1).float()
    torch.testing.assert_close(seen.weights[0], held / held.sum(1, keepdim=True))


def test_under_a_guarantee_weights_and_steps_do_not_depend_on_the_members():
    sizes = torch.tensor([2, 4, 6, 8, 10])
    algorithm = FedAvg(sampler=Poisson(local_epochs=2, batch_size=2), lr=0.2, weighting="by_examples")
    members = federation().members
    fewer = members & (federation().owners != 3)
    shares = []
    for real in (members, fewer):
        whole = federation(
            algorithm=algorithm, defense=DP, sizes=sizes, participation=Everyone(), members=real, rounds=1
        )
        _, seen = play(whole)
        shares.append(seen.weights[0])
        assert (seen.updates[0]["head.weight"][:, 3].abs().amax((1, 2)) > 0).all(), "an empty client sends noise"
        assert list(whole.plan.sampling) == [algorithm.sampler.event(int(size), 1) for size in sizes]
    assert torch.equal(shares[0], shares[1])
    torch.testing.assert_close(shares[0], (sizes / 30).expand(4, 5).float())


def test_another_membership_of_one_example_moves_no_update_but_its_own_client_s():
    # One lane at a time, so that the batches' widths cannot round differently.
    members = federation().members
    flipped = members.clone()
    flipped[0, 55] = ~flipped[0, 55]  # replica 0, client 0
    options = {"defense": DP, "participation": Everyone(), "rounds": 1, "backend": "loop"}
    updates = [play(federation(members=each, **options))[1].updates[0] for each in (members, flipped)]
    differs = (updates[0]["head.weight"] != updates[1]["head.weight"]).flatten(2).any(2)
    assert not differs[1:].any()
    assert not differs[0, 1:].any()


def test_public_sizes_are_the_expected_ones_and_at_least_one():
    owners = torch.tensor([0] * 9 + [1] * 20 + [3])
    assert public_sizes(owners, 4, 0.5).tolist() == [4, 10, 1, 1]


def test_events_are_one_a_client_over_all_rounds_that_it_takes_part_in():
    whole = federation(sizes=torch.tensor([4, 8, 8, 8, 8]), rounds=7, participation=Everyone())
    events = whole.plan.sampling
    rows = range(len(whole.replica_ids))
    turns = [
        max(sum(client in whole.turn(row, round).asked for round in range(7)) for row in rows) for client in (0, 1)
    ]
    assert events[0] == SamplingEvent(sampler="poisson", rate=0.5, steps=2 * 2 * turns[0])
    assert events[1] == SamplingEvent(sampler="poisson", rate=0.25, steps=4 * 2 * turns[1])
    assert len(events) == 5


def test_a_plan_counts_who_takes_part_in_the_replica_where_it_does_most_often():
    whole = federation(rounds=7)
    turns = torch.zeros(4, 7, 5, dtype=torch.bool)
    for row in range(4):
        for round in range(7):
            turns[row, round, whole.turn(row, round).asked] = True
    most = turns.sum(1).amax(0)
    assert [event.steps for event in whole.plan.sampling] == [6 * int(rounds) for rounds in most]
    assert whole.plan.patterns == {tuple(mine.nonzero().flatten().tolist()) for each in turns for mine in each.T}
    assert (whole.plan.cohort, whole.plan.exact, whole.plan.turns) == (3, True, int(most.max()))
    assert whole.plan.message == sum(value.numel() for value in whole.model.parameters())
    # A plan for all replicas covers each of its shards.
    shard = dataclasses.replace(whole, replica_ids=[2], members=whole.members[2:3]).plan
    assert all(mine.steps <= all_.steps for mine, all_ in zip(shard.sampling, whole.plan.sampling, strict=True))
    assert shard.patterns <= whole.plan.patterns


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"participation": Uniform(cohort=6)}, r"participation\.cohort is 6"),
        ({"backend": "gpu"}, "backend is 'gpu'"),
    ],
)
def test_a_federation_that_cannot_run_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        federation(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"lr": float("nan")}, {"momentum": 1.0}, {"server_lr": 0.0}, {"weighting": "equal"}],
)
def test_an_algorithm_that_cannot_run_is_refused(wrong):
    with pytest.raises(InputError, match=rf"algorithm\.{next(iter(wrong))}"):
        FedAvg(**({"sampler": Shuffled(local_epochs=1, batch_size=1), "lr": 0.1} | wrong))


@dataclass(frozen=True)
class Marking(Defense):
    """Doubles every update, and adds 100 to the sum, with draws so that the generators are seen to differ."""

    drawn: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        drawn = torch.tensor([torch.rand(1, generator=one).item() for one in senders.generators])
        self.drawn["lanes"] = drawn
        return {name: 2 * value for name, value in updates.items()}

    def on_sum(self, total: Tree, summed: Summed) -> Tree:
        drawn = torch.tensor([torch.rand(1, generator=one).item() for one in summed.draws(str(summed.round))])
        self.drawn["replicas"] = drawn
        return {name: value + 100 for name, value in total.items()}


def test_a_defence_acts_before_the_tap():
    plain, before = play(by_hand(weighting="uniform", rounds=1), model=zero())
    marked = dataclasses.replace(by_hand(weighting="uniform", rounds=1), defense=Marking())
    model, seen = play(marked, model=zero())
    assert torch.equal(seen.updates[0]["head.weight"], 2 * before.updates[0]["head.weight"])
    assert torch.equal(seen.sums[0]["head.weight"], 2 * before.sums[0]["head.weight"]), "the server sums before it acts"
    assert torch.equal(model["head.weight"], 2 * plain["head.weight"] + 100)


def test_a_defence_is_given_one_generator_a_lane_and_one_a_replica():
    defense = Marking()
    _, seen = play(federation(defense=defense, rounds=1))
    assert defense.drawn["lanes"].shape == (seen.cohorts[0].numel(),)
    assert defense.drawn["replicas"].shape == seen.cohorts[0].shape[:1]
    drawn = torch.cat([defense.drawn["lanes"].flatten(), defense.drawn["replicas"]])
    assert len(drawn.unique()) == drawn.numel()
