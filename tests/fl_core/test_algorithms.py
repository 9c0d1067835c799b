"""Every algorithm against its paper's box, worked out by hand for two clients, one weight and two rounds.

Client 0 holds one picture (pixel 1, class 0), client 1 three equal ones (pixel 1/2, class 1). The two logits are a·x
and −a·x, so that with σ the logistic function the clients' gradients in `a` are

    g0(a) = −(1 − σ(2a)),    g1(a) = σ(a)/2.

The recursions below are the boxes in plain numbers; beside them stand the values after two rounds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Defense
from fl_core.aggregation import Median
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedbn import FedBN
from fl_core.algorithms.fedopt import FedAdam, FedAvgM, FedYogi
from fl_core.algorithms.fedprox import FedProx
from fl_core.algorithms.fedsgd import FedSGD
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.architectures import CNN
from fl_core.data import ImageSet
from fl_core.errors import InputError
from fl_core.federation import Federation, initial_state, run
from fl_core.models import logits
from fl_core.sampling import Poisson, Shuffled
from fl_core.schedules import Cosine, Exponential
from fl_core.seeds import generator
from fl_core.state import State
from fl_core.views import Recorder, Server

FULL = Shuffled(local_steps=1, batch_size=None)
TWICE = Shuffled(local_steps=2, batch_size=None)


def sigma(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def g0(a: float) -> float:
    return -(1 - sigma(2 * a))


def g1(a: float) -> float:
    return sigma(a) / 2


class Tiny(nn.Module):
    """Two classes, one pixel, no bias; `norm` scales the pixel, for algorithms that keep a layer at home."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        self.norm = nn.Linear(1, 1, bias=False) if scaled else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(pixels.flatten(1)))
        return scores


def by_hand(algorithm: FedAvg, *, rounds: int = 2, scaled: bool = False, **more: Any) -> Federation:
    pixels = torch.tensor([1.0, 0.5, 0.5, 0.5], dtype=torch.float64).view(4, 1, 1, 1)
    settings: dict[str, Any] = {
        "model": Tiny(scaled).double(),
        "data": ImageSet(pixels, torch.tensor([0, 1, 1, 1]), ("a", "b")),
        "owners": torch.tensor([0, 1, 1, 1]),
        "members": torch.ones(1, 4, dtype=torch.bool),
        "sizes": torch.tensor([1, 3]),
        "algorithm": algorithm,
        "defense": Defense(),
        "rounds": rounds,
        "run": 0,
        "replica_ids": [0],
        "backend": "vmap",
    }
    return Federation(**(settings | more))


def start(federation: Federation) -> State:
    """The federation at weight 0 (and scale 1)."""
    state = initial_state(federation)
    model = {name: torch.full_like(v, float("norm" in name)) for name, v in state.model.items()}
    algorithm = federation.algorithm
    clients = algorithm.client_state(model, len(federation.sizes))
    return State(round=0, model=model, server=algorithm.server_state(model), clients=clients)


def final(algorithm: FedAvg, backend: str, **more: Any) -> float:
    federation = by_hand(algorithm, backend=backend, **more)
    weight = run(federation, state=start(federation)).model["head.weight"].flatten().tolist()
    assert weight[0] == pytest.approx(-weight[1], abs=1e-12), "the two classes mirror each other"
    return weight[0]


def fedsgd() -> float:
    a = 0.0
    for _ in range(2):
        a -= 0.5 * (0.25 * g0(a) + 0.75 * g1(a))
    return a


def fedavg() -> float:
    a = 0.0
    for _ in range(2):
        ends = []
        for g in (g0, g1):
            y = a
            for _ in range(2):
                y -= 0.5 * g(y)
            ends.append(y)
        a = sum(ends) / 2
    return a


def decayed() -> float:
    a = 0.0
    for lr, server_lr in ((0.5, 1.0), (0.25, 0.1)):
        a -= server_lr * lr * (g0(a) + g1(a)) / 2
    return a


def weight_decay() -> float:
    a = 0.0
    for _ in range(2):
        a = sum(a - 0.5 * (g(a) + 0.1 * a) for g in (g0, g1)) / 2
    return a


def fedprox() -> float:
    a = 0.0
    for _ in range(2):
        ends = []
        for g in (g0, g1):
            y = a
            for _ in range(2):
                y -= 0.5 * (g(y) + 0.4 * (y - a))
            ends.append(y)
        a = sum(ends) / 2
    return a


def scaffold() -> float:
    a, c, own = 0.0, 0.0, [0.0, 0.0]
    for _ in range(2):
        moves, changes = [], []
        for i, g in enumerate((g0, g1)):
            y = a
            for _ in range(2):
                y -= 0.5 * (g(y) - own[i] + c)
            new = own[i] - c + (a - y) / (2 * 0.5)
            moves.append(y - a)
            changes.append(new - own[i])
            own[i] = new
        a += 0.8 * sum(moves) / 2
        c += sum(changes) / 2  # |S|/N = 1
    return a


def fedavgm() -> float:
    a, m = 0.0, 0.0
    for _ in range(2):
        m = 0.9 * m - 0.5 * (g0(a) + g1(a)) / 2
        a += 0.7 * m
    return a


def adaptive(second: Callable[[float, float], float]) -> float:
    a, m, v = 0.0, 0.0, 0.01**2
    for _ in range(2):
        delta = -0.5 * (g0(a) + g1(a)) / 2
        m = 0.8 * m + 0.2 * delta
        v = second(v, delta**2)
        a += 0.1 * m / (math.sqrt(v) + 0.01)
    return a


def fedadam() -> float:
    return adaptive(lambda v, square: 0.9 * v + 0.1 * square)


def fedyogi() -> float:
    return adaptive(lambda v, square: v - 0.1 * square * math.copysign(1, v - square))


ADAPTIVE = {"sampler": FULL, "lr": 0.5, "server_lr": 0.1, "beta1": 0.8, "beta2": 0.9, "tau": 0.01}
BOXES = [
    (FedSGD(sampler=FULL, lr=0.5), fedsgd, -0.059083),
    (FedAvg(sampler=TWICE, lr=0.5), fedavg, 0.169881),
    (
        FedAvg(
            sampler=FULL,
            lr=0.5,
            schedule=Exponential(decay=0.5),
            server_schedule=Exponential(decay=0.1),
        ),
        decayed,
        0.065137,
    ),
    (FedAvg(sampler=FULL, lr=0.5, weight_decay=0.1), weight_decay, 0.112120),
    (FedProx(sampler=TWICE, lr=0.5, mu=0.4), fedprox, 0.150925),
    (SCAFFOLD(sampler=TWICE, lr=0.5, server_lr=0.8), scaffold, 0.152059),
    (FedAvgM(sampler=FULL, lr=0.5, server_lr=0.7), fedavgm, 0.122092),
    (FedAdam(**ADAPTIVE), fedadam, 0.096054),
    (FedYogi(**ADAPTIVE), fedyogi, 0.094249),
]


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize(("algorithm", "box", "value"), BOXES, ids=[box.__name__ for _, box, _ in BOXES])
def test_two_rounds_are_the_paper_s_box_worked_out_by_hand(algorithm, box, value, backend):
    found = final(algorithm, backend)
    assert found == pytest.approx(box(), abs=1e-12)
    assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_local_layers_stay_with_their_clients(backend: str):
    # Logits ±a·s·x: the shared a and each client's own scale s, which starts at 1.
    algorithm = FedBN(sampler=FULL, lr=0.5, local_layers=["norm*"])
    federation = by_hand(algorithm, scaled=True, backend=backend)
    state = start(federation)
    state.model["head.weight"][:] = torch.tensor([[[0.2], [-0.2]]], dtype=torch.float64)
    recorder = Recorder(Server)
    done = run(federation, recorder, state=state)

    a, scales = 0.2, [1.0, 1.0]
    for _ in range(2):
        moved = []
        for i, (x, sign) in enumerate(((1.0, -1.0), (0.5, 1.0))):
            p = sigma(sign * 2 * a * scales[i] * x)  # the wrong class's probability, which both gradients carry
            moved.append(a - 0.5 * sign * p * scales[i] * x)
            scales[i] -= 0.5 * sign * 2 * p * a * x
        a = sum(moved) / 2
    assert done.model["head.weight"].flatten().tolist() == pytest.approx([a, -a], abs=1e-12)
    assert done.clients["norm.weight"].flatten().tolist() == pytest.approx(scales, abs=1e-12)
    assert abs(scales[0] - scales[1]) > 0.05
    assert done.model["norm.weight"].item() == 1.0, "the server never saw another"
    personal = algorithm.personal(done.model, done.clients)
    assert personal is not None
    assert personal["norm.weight"].flatten().tolist() == done.clients["norm.weight"].flatten().tolist()
    seen = recorder.observation()
    assert isinstance(seen, Server)
    assert set(seen.updates[0]) == set(seen.models[0]) == {"head.weight"}


def test_scaffold_shows_its_controls_to_those_who_receive_them():
    federation = by_hand(SCAFFOLD(sampler=TWICE, lr=0.5))
    recorder = Recorder(Server)
    run(federation, recorder, state=start(federation))
    seen = recorder.observation()
    assert isinstance(seen, Server)
    assert set(seen.models[1]) == set(seen.updates[0]) == {"head.weight", "control/head.weight"}
    assert set(seen.model) == {"head.weight"}


def test_scaffold_removes_the_drift_that_fedavg_keeps():
    # Many local steps on very different clients: FedAvg stops away from the pooled optimum, where g0 + g1 = 0.
    def off(algorithm: FedAvg) -> float:
        a = final(algorithm, "vmap", rounds=200)
        return abs(g0(a) + g1(a))

    many = Shuffled(local_steps=8, batch_size=None)
    assert off(SCAFFOLD(sampler=many, lr=0.5)) < 1e-6
    assert off(FedAvg(sampler=many, lr=0.5)) > 1e-3


def federation(algorithm: FedAvg, **more: Any) -> Federation:
    """Two replicas, four clients, 48 pictures of 6x6, a small CNN with GroupNorm."""
    draw = generator(0, "test data")
    settings: dict[str, Any] = {
        "model": CNN((1, 6, 6), 3, width=4, norm="group"),
        "data": ImageSet(
            torch.rand(48, 1, 6, 6, generator=draw), torch.randint(0, 3, (48,), generator=draw), ("a", "b", "c")
        ),
        "owners": torch.arange(48) % 4,
        "members": torch.rand(2, 48, generator=draw) < 0.5,
        "sizes": torch.full((4,), 6),
        "algorithm": algorithm,
        "defense": Defense(),
        "rounds": 4,
        "run": 0,
        "replica_ids": [0, 1],
        "backend": "loop",
    }
    return Federation(**(settings | more))


SAMPLER = Poisson(local_epochs=1, batch_size=2)
STATEFUL = [
    SCAFFOLD(sampler=SAMPLER, lr=0.1),
    FedAvgM(sampler=SAMPLER, lr=0.1),
    FedAdam(sampler=SAMPLER, lr=0.1, server_lr=0.01),
    FedBN(sampler=SAMPLER, lr=0.1),
]


@pytest.mark.parametrize("algorithm", STATEFUL, ids=lambda algorithm: type(algorithm).__name__)
def test_a_resumed_run_carries_the_algorithm_s_state_in_bits(algorithm: FedAvg):
    whole = federation(algorithm)
    kept: list[dict[str, Tensor]] = []
    done = run(whole, after_round=lambda state: kept.append({name: v.clone() for name, v in state.tensors().items()}))
    again = run(whole, state=State.from_tensors(kept[1]))
    assert done.tensors().keys() == again.tensors().keys()
    for name, value in done.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name
    forgetful = dataclasses.replace(whole)
    fresh = initial_state(forgetful)
    lost = run(forgetful, state=dataclasses.replace(fresh, round=2, model=State.from_tensors(kept[1]).model))
    assert not torch.equal(lost.model["head.weight"], done.model["head.weight"]), "the state matters"


def test_a_client_that_took_no_step_keeps_its_control():
    members = torch.zeros(2, 48, dtype=torch.bool)
    members[:, 1::4] = True
    done = run(federation(SCAFFOLD(sampler=Shuffled(batch_size=2), lr=0.1), members=members))
    control = done.clients["control/head.weight"].abs().amax((2, 3))
    assert (control[:, [0, 2, 3]] == 0).all()
    assert (control[:, 1] > 0).all()


def test_personal_models_are_what_the_clients_use():
    done = run(federation(FedBN(sampler=SAMPLER, lr=0.3)))
    personal = FedBN(sampler=SAMPLER, lr=0.3).personal(done.model, done.clients)
    assert personal is not None
    lanes = {name: value.flatten(0, 1) for name, value in personal.items()}
    found = logits(CNN((1, 6, 6), 3, width=4, norm="group"), lanes, torch.rand(5, 1, 6, 6)).unflatten(0, (2, 4))
    assert (found.diff(dim=1).abs().amax((2, 3)) > 1e-4).all(), "each client's own"


def test_a_cosine_falls_to_its_floor_after_the_warm_up():
    schedule = Cosine(floor=0.2, warmup=2)
    factors = [schedule.factor(round, 12) for round in range(13)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[7] == pytest.approx(0.6)
    assert factors[12] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[2:]))


def test_a_staircase_falls_every_so_many_rounds():
    schedule = Exponential(decay=0.5, every=3)
    assert [schedule.factor(round, 10) for round in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedSGD(sampler=SAMPLER, lr=0.1), "takes one local step a round; set sampler=full_batch"),
        (lambda: FedProx(sampler=SAMPLER, lr=0.1, mu=-1.0), r"algorithm\.mu is -1"),
        (lambda: SCAFFOLD(sampler=SAMPLER, lr=0.1, momentum=0.5), r"algorithm\.momentum is 0\.5; SCAFFOLD"),
        (lambda: SCAFFOLD(sampler=SAMPLER, lr=0.1, aggregator=Median()), "set aggregator=mean"),
        (lambda: FedAvgM(sampler=SAMPLER, lr=0.1, server_momentum=1.0), r"algorithm\.server_momentum is 1"),
        (lambda: FedAdam(sampler=SAMPLER, lr=0.1, tau=0.0), r"algorithm\.tau is 0"),
        (lambda: FedAvg(sampler=SAMPLER, lr=0.1, weight_decay=-0.1), r"algorithm\.weight_decay is -0\.1"),
        (lambda: federation(FedBN(sampler=SAMPLER, lr=0.1, local_layers=["x*"])), "matches none of the model's"),
        (lambda: federation(FedBN(sampler=SAMPLER, lr=0.1, local_layers=["*"])), "matches all of the model's"),
        (lambda: Exponential(decay=1.5), r"schedule\.decay is 1\.5"),
        (lambda: Cosine(floor=-0.1), r"schedule\.floor is -0\.1"),
    ],
)
def test_an_algorithm_that_cannot_run_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
