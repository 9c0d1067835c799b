"""What the engine promises whatever the fleet, the memory and the number of processes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Defense
from defenses.dp_sgd import DPSGD
from fl_core.aggregation import Krum, Mean, Median, TrimmedMean
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedbn import FedBN
from fl_core.algorithms.fedopt import FedAvgM
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.architectures import CNN
from fl_core.cohort import Lane, sent_to
from fl_core.data import ImageSet
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, run
from fl_core.fleet import Buffered, Synchronous
from fl_core.models import logits
from fl_core.participation import Cyclic, Everyone, PoissonClients, Uniform
from fl_core.partition import NOBODY
from fl_core.sampling import Poisson, Shuffled
from fl_core.seeds import generator
from fl_core.state import State
from fl_core.views import Recorder, SecureServer, Server

DP = DPSGD(epsilon=1.0, delta=1e-5, clip_norm=0.5, noise_multiplier=0.8)
SLOW = Devices(example_seconds=1.0, example_sigma=1.0, dropout_before=0.2, dropout_after=0.1)
PARTIAL = Synchronous(devices=SLOW, deadline=12.0, partial=True)
FEDBUFF = Buffered(devices=SLOW, concurrency=5, buffer=3)


def federation(**changes: Any) -> Federation:
    """Three replicas, six clients, 60 pictures of 6x6, half of them members, a small CNN."""
    draw = generator(0, "test data")
    settings: dict[str, Any] = {
        "model": CNN((1, 6, 6), 3, width=4),
        "data": ImageSet(
            torch.rand(60, 1, 6, 6, generator=draw), torch.randint(0, 3, (60,), generator=draw), ("a", "b", "c")
        ),
        "owners": torch.arange(60) % 6,
        "members": torch.rand(3, 60, generator=draw) < 0.5,
        "sizes": torch.full((6,), 5),
        "algorithm": FedAvg(sampler=Poisson(local_epochs=2, batch_size=2), lr=0.2),
        "defense": Defense(),
        "rounds": 4,
        "run": 0,
        "replica_ids": [0, 1, 2],
        "backend": "loop",
    }
    return Federation(**(settings | changes))


def play(federation: Federation, **options: Any) -> tuple[State, Server]:
    recorder = Recorder(view=Server)
    state = run(federation, recorder, **options)
    seen = recorder.observation()
    assert isinstance(seen, Server)
    return state, seen


def same_bits(one: State, other: State) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def assert_close(one: State, other: State, tolerance: float = 1e-5) -> None:
    for name, value in one.tensors().items():
        torch.testing.assert_close(value, other.tensors()[name], rtol=0, atol=tolerance)


VARIETY = {
    "fedavg under DP-SGD": {"defense": DP},
    "scaffold": {"algorithm": SCAFFOLD(sampler=Shuffled(batch_size=2), lr=0.1)},
    "local layers": {
        "algorithm": FedBN(sampler=Poisson(batch_size=2), lr=0.1),
        "model": CNN((1, 6, 6), 3, width=4, norm="group"),
    },
    "ragged cohorts": {
        "participation": PoissonClients(rate=0.4),
        "algorithm": FedAvgM(sampler=Poisson(batch_size=2), lr=0.2),
    },
    "partial work": {"fleet": PARTIAL},
    "fedbuff": {"fleet": FEDBUFF, "rounds": 8},
    "median": {"algorithm": FedAvg(sampler=Poisson(batch_size=2), lr=0.2, aggregator=Median())},
}
variety = pytest.mark.parametrize("changes", VARIETY.values(), ids=VARIETY.keys())


@variety
def test_a_resumed_run_is_the_uninterrupted_one_in_bits(changes: dict[str, Any]):
    kept: list[dict[str, Tensor]] = []
    done, seen = play(
        federation(**changes), after_round=lambda state: kept.append({n: v.clone() for n, v in state.tensors().items()})
    )
    for at in range(len(kept) - 1):
        again, rest = play(federation(**changes), state=State.from_tensors(kept[at]))
        assert same_bits(done, again)
        for round, updates in rest.updates.items():
            assert all(torch.equal(value, seen.updates[round][name]) for name, value in updates.items())


@variety
def test_backends_and_parts_of_memory_give_the_same_numbers(changes: dict[str, Any]):
    whole, seen = play(federation(**changes))
    assert_close(whole, play(federation(**changes, backend="vmap"))[0])
    for memory in (1, 40_000, 200_000):  # one lane at a time, a few, parts of replicas
        parts, shown = play(federation(**changes, memory=memory))
        assert_close(whole, parts, 1e-6)
        for round, updates in shown.updates.items():
            for name, value in updates.items():
                torch.testing.assert_close(value, seen.updates[round][name], rtol=0, atol=1e-6)


@variety
def test_shards_of_replicas_give_the_whole_stack_s_numbers(changes: dict[str, Any]):
    whole = federation(**changes)
    state = run(whole)
    for row in range(3):
        alone = run(dataclasses.replace(whole, members=whole.members[row : row + 1], replica_ids=[row]))
        for name, value in alone.model.items():
            torch.testing.assert_close(value[0], state.model[name][row], rtol=0, atol=1e-6)


class Normed(nn.Module):
    """A small net with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.bn(self.conv(pixels))).flatten(1))
        return scores


def test_batch_norm_trains_like_a_plain_loop_and_its_statistics_are_averaged():
    algorithm = FedAvg(sampler=Shuffled(batch_size=3), lr=0.1, server_lr=0.5)
    whole = federation(model=Normed(), algorithm=algorithm, rounds=1)
    begin = initial_state(whole)
    done, seen = play(whole)
    sampler = algorithm.sampler
    for client in range(6):
        model = Normed()
        model.load_state_dict({n: v[0] for n, v in begin.model.items()}, strict=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for rows in sampler.draw(whole.held(0, client), 5, generator(0, "batches", 0, 0, client)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(whole.data.images[rows]), whole.data.labels[rows]).backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            if name != "bn.num_batches_tracked":
                moved = value - begin.model[name][0]
                torch.testing.assert_close(seen.updates[0][name][0, client], moved, rtol=0, atol=1e-5)
    mean = {name: value.mean(1) for name, value in seen.updates[0].items()}
    for name, rate in (("conv.weight", 0.5), ("bn.weight", 0.5), ("bn.running_var", 1.0), ("bn.running_mean", 1.0)):
        torch.testing.assert_close(done.model[name], begin.model[name] + rate * mean[name])


def test_batch_norm_is_refused_with_example_level_privacy_and_with_vmap():
    with pytest.raises(InputError, match="BatchNorm mixes the examples of a batch"):
        run(federation(model=Normed(), defense=DP))
    with pytest.raises(InputError, match="backend=loop"):
        run(federation(model=Normed(), backend="vmap"))
    assert run(federation(model=Normed(), backend="auto", rounds=1)).round == 1


def test_batch_norm_stays_finite_when_a_poisson_batch_is_empty():
    algorithm = FedAvg(sampler=Poisson(local_steps=8, batch_size=1), lr=0.1)
    done = run(federation(model=Normed(), algorithm=algorithm))
    assert all(torch.isfinite(value).all() for value in done.model.values())


def test_partial_work_does_the_first_batches_of_the_whole_turn():
    # The fleet decides from clocks alone; what a cut client sends is what it would have had after so many batches.
    whole = federation(fleet=PARTIAL, rounds=6)
    _, seen = play(whole)
    cut = [
        (round, row, seat, client, float(cohort.work[row, seat]))
        for round in range(6)
        for cohort in [whole.cohort(round)]
        for row, clients in enumerate(cohort.clients.tolist())
        for seat, client in enumerate(clients)
        if client != NOBODY and cohort.work[row, seat] < 1
    ]
    assert len(cut) >= 3
    for round, row, seat, client, share in cut:
        batches = whole.algorithm.sampler.draw(whole.held(row, client), 5, generator(0, "batches", row, round, client))
        weights = {name: value[row].clone().requires_grad_() for name, value in seen.models[round].items()}
        for rows in batches[: math.floor(share * len(batches) + 1e-9)]:
            if not len(rows):
                continue
            scores = torch.func.functional_call(whole.model, weights, (whole.data.images[rows],))
            loss = nn.functional.cross_entropy(scores, whole.data.labels[rows])
            steps = torch.autograd.grad(loss, list(weights.values()))
            weights = {
                name: (value - 0.2 * step).detach().requires_grad_()
                for (name, value), step in zip(weights.items(), steps, strict=True)
            }
        for name, value in weights.items():
            moved = value.detach() - seen.models[round][name][row]
            torch.testing.assert_close(seen.updates[round][name][row, seat], moved, rtol=0, atol=1e-5)


def test_a_stale_client_trains_from_the_model_that_it_was_sent_and_weighs_less():
    whole = federation(fleet=FEDBUFF, rounds=8)
    _, seen = play(whole)
    stale = 0
    for round in range(8):
        cohort = whole.cohort(round)
        tau = (round - cohort.versions).float()
        expected = torch.where(cohort.present, (1 + tau) ** -0.5 / cohort.present.sum(1, keepdim=True), 0.0)
        torch.testing.assert_close(seen.weights[round], expected)
        assert torch.equal(seen.versions[round], cohort.versions)
        stale += int((tau[cohort.present] > 0).sum())
        moved = {name: value.clone() for name, value in seen.models[round].items()}
        for name, value in moved.items():
            value += torch.einsum("rc,rc...->r...", seen.weights[round], seen.updates[round][name])
            later = seen.models[round + 1][name] if round < 7 else seen.model[name]
            torch.testing.assert_close(later, value)
    assert stale >= 5
    past = {3: {"w": torch.tensor([[1.0], [2.0]])}, 5: {"w": torch.tensor([[3.0], [4.0]])}}
    lanes = [Lane(0, 7, 3, 1.0), Lane(1, 2, 5, 1.0), Lane(0, 4, 5, 1.0)]
    assert sent_to(past, lanes)["w"].flatten().tolist() == [1.0, 4.0, 3.0]


def test_an_asynchronous_state_keeps_the_models_that_somebody_still_trains_on_and_no_others():
    whole, sizes = federation(fleet=FEDBUFF, rounds=12), []
    run(whole, after_round=lambda state: sizes.append(sorted(state.past)))
    for finished, versions in enumerate(sizes, start=1):
        needed = [
            int(v) for later in range(finished, 12) for v in whole.cohort(later).versions.flatten() if v < finished
        ]
        assert set(needed) <= set(versions)
        assert all(version < finished for version in versions)
    assert max(map(len, sizes)) < 10
    assert run(federation()).past == {}


def test_a_replica_whose_cohort_is_empty_keeps_its_model_and_its_server_s_momentum():
    algorithm = FedAvgM(sampler=Poisson(batch_size=2), lr=0.2)
    whole = federation(participation=PoissonClients(rate=0.15), algorithm=algorithm, rounds=12)
    states = [initial_state(whole)]
    run(whole, after_round=states.append)
    empty = 0
    for round in range(12):
        here = whole.cohort(round).present.any(1)
        for before, after in (
            (states[round].model, states[round + 1].model),
            (states[round].server, states[round + 1].server),
        ):
            for name, value in after.items():
                still = (value == before[name]).flatten(1).all(1)
                assert still[~here].all()
        moved = (states[round + 1].model["head.weight"] != states[round].model["head.weight"]).flatten(1).any(1)
        empty += int((~here).sum())
        assert moved[here].any() or not here.any()
    assert empty >= 5


def test_a_round_that_nobody_takes_part_in_has_no_sum():
    whole = federation(participation=PoissonClients(rate=1e-9))
    done, seen = play(whole)
    assert seen.sums == {round: {} for round in range(4)}
    assert all(torch.equal(value, initial_state(whole).model[name]) for name, value in done.model.items())


@pytest.mark.parametrize("aggregator", [Median(), TrimmedMean(trim=0.2), Krum(byzantine=1)])
def test_a_robust_aggregator_steps_where_its_own_rule_says(aggregator):
    whole = federation(algorithm=FedAvg(sampler=Poisson(batch_size=2), lr=0.2, aggregator=aggregator), rounds=1)
    done, seen = play(whole)
    expected = aggregator(seen.updates[0], seen.weights[0], torch.ones(3, 6).bool())
    for name, value in done.model.items():
        torch.testing.assert_close(value, seen.models[0][name] + expected[name])


def test_secure_aggregation_s_view_goes_with_no_robust_aggregator():
    whole = federation(algorithm=FedAvg(sampler=Poisson(batch_size=2), lr=0.2, aggregator=Median()))
    with pytest.raises(InputError, match="secure_server sees nothing but sums"):
        run(whole, Recorder(SecureServer))
    assert Mean.streams


def test_examples_that_nobody_owns_train_nowhere():
    owners = torch.arange(60) % 6
    owners[::6] = NOBODY  # all that client 0 had
    whole = federation(owners=owners, rounds=1, algorithm=FedAvg(sampler=Shuffled(batch_size=2), lr=0.2))
    _, seen = play(whole)
    assert (seen.updates[0]["head.weight"][:, 0] == 0).all()
    assert (whole.held_counts[:, 0] == 0).all()
    assert sum(len(whole.held(0, client)) for client in range(6)) == int((whole.members[0] & (owners != NOBODY)).sum())


def test_a_cyclic_client_is_accounted_for_the_rounds_that_it_can_be_in():
    whole = federation(participation=Cyclic(cohort=None, groups=3), rounds=7)
    # Block 0 is asked in rounds 0, 3 and 6, the others in two; 2 epochs of 3 steps each.
    assert [event.steps for event in whole.plan.sampling] == [18, 18, 12, 12, 12, 12]
    drawn = federation(participation=Uniform(cohort=2), rounds=7)
    turns = torch.stack(
        [drawn.turn(row, round).clients.bincount(minlength=6) for row in range(3) for round in range(7)]
    )
    most = turns.unflatten(0, (3, 7)).sum(1).amax(0)
    assert [event.steps for event in drawn.plan.sampling] == [2 * 3 * int(rounds) for rounds in most]


def test_a_fleet_and_an_algorithm_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="control variates do not go together"):
        federation(fleet=FEDBUFF, algorithm=SCAFFOLD(sampler=Shuffled(batch_size=2), lr=0.1))
    with pytest.raises(InputError, match="set participation=everyone"):
        federation(fleet=FEDBUFF, participation=Uniform(cohort=2))
    assert federation(fleet=FEDBUFF, participation=Everyone()).rounds == 4


def test_evaluation_of_a_batch_norm_model_does_not_depend_on_the_queries():
    done = run(federation(model=Normed(), rounds=2))
    images = torch.rand(8, 1, 6, 6)
    whole = logits(Normed(), done.model, images)
    torch.testing.assert_close(whole[:, :1], logits(Normed(), done.model, images[:1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [change for name, change in VARIETY.items() if "DP" not in name])
def test_cuda_gives_a_federation_the_cpu_s_numbers(changes: dict[str, Any]):
    # Without noise, which a GPU draws from its own generator, and without TF32 in the convolutions.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        whole = federation(**changes)
        there = dataclasses.replace(whole, model=whole.model.to("cuda"), data=whole.data.to(torch.device("cuda")))
        found = run(there, Recorder(Server))
        assert all(value.device.type == "cuda" for value in found.model.values())
        on_cpu = State.from_tensors({name: value.cpu() for name, value in found.tensors().items()})
        whole.model.to("cpu")
        assert_close(run(federation(**changes)), on_cpu, 1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
