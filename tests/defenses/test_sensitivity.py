"""What one client, or one example, can change: for every algorithm, through the engine, without the noise.

A mechanism's noise hides as much as its clip times its share. Each test here takes two neighbouring data sets from the
same state into one round (or one step) and measures how far the sums that are noised lie apart. Rounding: 1e-5.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses import dp_fedavg_shares
from defenses.base import Defense
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_ftrl import DPFTRL
from defenses.dp_sgd import DPSGD
from defenses.rules import ClipAndNoise
from fl_core.algorithms.fedavg import FedAvg
from fl_core.algorithms.fedbn import FedBN
from fl_core.algorithms.fedopt import FedAdam, FedAvgM, FedYogi
from fl_core.algorithms.fedprox import FedProx
from fl_core.algorithms.fedsgd import FedSGD
from fl_core.algorithms.scaffold import SCAFFOLD
from fl_core.data import ImageSet
from fl_core.federation import Federation, rounds
from fl_core.optimizers import Tree
from fl_core.participation import Everyone, Participation
from fl_core.rules import Step
from fl_core.sampling import Poisson, Sampler, Shuffled
from fl_core.state import State
from tests.federations import AllBut, federation, flat, linear, pictures, play, prepared

CLIP, ROUNDING = 0.05, 1e-5
SIZES = torch.tensor([8, 2, 3, 4, 6, 1])  # public: client 0's is the largest, and its weight, too

ALGORITHMS = {
    "FedSGD": lambda sampler: FedSGD(sampler=dataclasses.replace(sampler, local_steps=1), lr=0.5),
    "FedAvg": lambda sampler: FedAvg(sampler=sampler, lr=0.5),
    "FedAvg, momentum": lambda sampler: FedAvg(sampler=sampler, lr=0.5, momentum=0.9, weight_decay=0.01),
    "FedAvg, weighted": lambda sampler: FedAvg(sampler=sampler, lr=0.5, weighting="by_examples"),
    "FedProx": lambda sampler: FedProx(sampler=sampler, lr=0.5, mu=0.3),
    "SCAFFOLD": lambda sampler: SCAFFOLD(sampler=sampler, lr=0.5),
    "SCAFFOLD, weighted": lambda sampler: SCAFFOLD(sampler=sampler, lr=0.5, weighting="by_examples"),
    "FedAvgM": lambda sampler: FedAvgM(sampler=sampler, lr=0.5),
    "FedAdam": lambda sampler: FedAdam(sampler=sampler, lr=0.5),
    "FedYogi": lambda sampler: FedYogi(sampler=sampler, lr=0.5),
    "FedBN": lambda sampler: FedBN(sampler=sampler, lr=0.5, local_layers=["*bias"]),
}
algorithms = pytest.mark.parametrize("name", ALGORITHMS)
CLIENT_LEVEL: dict[str, Defense] = {
    "dp_fedavg": DPFedAvg(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0),
    "dp_fedavg, layers": DPFedAvg(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0, clipping="per_layer"),
    "dp_fedavg, adaptive": DPFedAvg(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0, clipping="adaptive"),
    "dp_fedavg, capped": DPFedAvg(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0, weight_cap=3.0),
    "dp_ftrl": DPFTRL(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0, factorisation="tree"),
}


def other_pictures() -> ImageSet:
    """Client 0 holds pictures a hundred times as bright, of other classes; the others' stay."""
    data = pictures()
    mine = (torch.arange(len(data)) % 6 == 0).view(-1, 1, 1, 1)
    images = torch.where(mine, 100 * data.images.flip(0), data.images)
    return ImageSet(images, torch.where(mine.flatten(), (data.labels + 1) % 3, data.labels), data.classes)


def whole(name: str, defense: Defense, participation: Participation, **changes: Any) -> Federation:
    algorithm = ALGORITHMS[name](Shuffled(batch_size=2, local_epochs=2))
    return federation(
        model=linear(bias=True),
        algorithm=algorithm,
        defense=defense,
        participation=participation,
        rounds=2,
        **({"sizes": SIZES} | changes),
    )


def played(begun: Federation) -> State:
    """The state after one round, noise and all: the public past of both neighbours."""
    return copied(next(rounds(begun)))


def copied(state: State, stranger: bool = False) -> State:
    """A copy; with another client 0, which keeps anything at all."""
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    for name, value in tensors.items():
        if stranger and name.startswith("clients:"):
            value[:, 0] = 10 * torch.randn(value[:, 0].shape, generator=torch.Generator().manual_seed(1))
    return State.from_tensors(tensors)


def sums(begun: Federation, state: State) -> tuple[Tensor, Tensor]:
    """What the noise is added to [parameters], and the count beside it."""
    _, seen = play(begun, state=state)
    total = dict(seen.sums[1])
    count = total.pop("short/updates", torch.zeros(1))
    return flat(total, 1)[0], count


@algorithms
@pytest.mark.parametrize("mechanism", CLIENT_LEVEL)
def test_a_client_moves_the_sum_by_no_more_than_the_clip_times_its_share(name, mechanism):
    # Adaptive clips want equal weights, and are refused otherwise.
    even = {"sizes": torch.full((6,), 4)} if "adaptive" in mechanism else {}
    made = whole(name, CLIENT_LEVEL[mechanism], AllBut(rate=0.5), **even)
    made = dataclasses.replace(made, defense=made.defense.prepare(made.plan))
    past = played(made)
    clip = float(past.defense.get("clip/updates", torch.tensor(CLIP)))
    share = float(made.public_shares.max())
    assert share == float(made.public_shares[0])
    here, count = sums(made, copied(past))
    gone, less = sums(dataclasses.replace(made, participation=AllBut(rate=0.5, absent=(0,))), copied(past))
    assert (here - gone).norm() <= clip * share + ROUNDING
    # Clips bite: the bound is reached, but for layers that were short of their part.
    assert (here - gone).norm() >= (0.5 if "layers" in mechanism else 0.99) * clip * share
    assert (count - less).abs() <= 0.5 * share + ROUNDING
    changed = dataclasses.replace(made, data=other_pictures())
    there, others = sums(changed, copied(past, stranger=True))
    assert (there - gone).norm() <= clip * share + ROUNDING
    assert (there - here).norm() <= 2 * clip * share + ROUNDING
    assert (there - here).norm() >= 0.1 * clip * share
    assert (count - others).abs() <= share + ROUNDING


@algorithms
def test_noise_in_shares_hides_what_a_client_s_rounded_update_can_be_long(name, monkeypatch):
    monkeypatch.setattr(dp_fedavg_shares, "discrete_gaussian", lambda shape, *_: torch.zeros(shape, dtype=torch.int64))
    made = whole(
        name, DPFedAvgShares(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0), Everyone(), sizes=SIZES * 0 + 4
    )
    made = dataclasses.replace(made, defense=made.defense.prepare(made.plan))
    past = played(made)
    longest = made.defense.grid.sensitivity * made.defense.grid.granularity
    (here, _), (there, _) = (
        sums(dataclasses.replace(made, data=data), copied(past, stranger))
        for data, stranger in ((pictures(), False), (other_pictures(), True))
    )
    assert (here - there).norm() <= 2 * longest / 6 + ROUNDING


@dataclass(frozen=True, kw_only=True)
class Settled(DPFedAvg):
    """Whatever was summed, the server is handed the same."""

    def on_sum(self, total: Tree, summed: Any) -> Tree:
        return {name: torch.full_like(value, 0.25) for name, value in super().on_sum(total, summed).items()}


@algorithms
def test_what_the_server_does_with_the_noised_sum_looks_at_nothing_private(name):
    # Not at who came (SCAFFOLD's part of all clients), nor at what they hold or how much of it.
    defense = Settled(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0)
    half = torch.arange(24)[None] < 13
    ends = []
    for participation, changes in (
        (AllBut(rate=0.5), {}),
        (AllBut(rate=0.5, absent=(0, 3)), {}),
        (AllBut(rate=0.5, absent=tuple(range(6))), {}),
        (AllBut(rate=0.5), {"data": other_pictures()}),
        (AllBut(rate=0.5), {"members": half}),
    ):
        done, seen = play(whole(name, defense, participation, **changes))
        ends.append((done, seen))
    for done, seen in ends[1:]:
        for tree, first in (
            (done.model, ends[0][0].model),
            (done.server, ends[0][0].server),
            (seen.models[1], ends[0][1].models[1]),
        ):
            assert tree.keys() == first.keys()
            assert all(torch.equal(value, first[key]) for key, value in tree.items())


# Examples


def recorded(monkeypatch: pytest.MonkeyPatch, made: Federation) -> list[Tree]:
    """Every step's sums before the noise, on one trajectory: each step then follows the same gradient."""
    found: list[Tree] = []

    def finish(rule: ClipAndNoise, sums: Tree, step: Step) -> Tree:
        found.append({name: value.clone() for name, value in sums.items()})
        return {name: torch.full_like(value, 0.01) for name, value in sums.items() if "/" not in name}

    with monkeypatch.context() as patch:
        patch.setattr(ClipAndNoise, "finish", finish)
        play(made)
    return found


def with_example(brightness: float) -> ImageSet:
    """Example 0, which client 0 holds, is so bright: at 0 it has no gradient, as if it were not there."""
    data = pictures()
    images = data.images.clone()
    images[0] *= brightness
    return dataclasses.replace(data, images=images)


@algorithms
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("kind", ["poisson", "shuffled"])
def test_an_example_moves_each_sum_that_it_is_drawn_for_by_the_clip_and_no_other(monkeypatch, name, clipping, kind):
    sampler: Sampler = (Poisson if kind == "poisson" else Shuffled)(batch_size=2, local_epochs=2)
    algorithm = ALGORITHMS[name](sampler)
    model = linear(bias=name == "FedBN")
    defense = DPSGD(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0, clipping=clipping)
    made = prepared(model=model, algorithm=algorithm, defense=defense, rounds=2)
    bright, dark, other = (
        recorded(monkeypatch, dataclasses.replace(made, data=with_example(brightness))) for brightness in (50, 0, -50)
    )
    moved = 0
    for there, gone, replaced in zip(bright, dark, other, strict=True):
        # FedBN's model has biases, whose gradient a black picture has as well: it is one that is replaced.
        for one, clips in ((gone, 2 if name == "FedBN" else 1), (replaced, 2)):
            apart = {key: there[key] - one[key] for key in there}
            count = apart.pop("short/examples", torch.zeros(6))
            lengths = flat(apart, 1).norm(dim=1)
            assert (lengths[1:] == 0).all(), "another client's sums"
            assert lengths[0] <= clips * CLIP + ROUNDING
            assert (count.abs() <= 1).all()
            moved += one is gone and bool(lengths[0] > 0.9 * CLIP)
    accounted = made.plan.sampling[0].steps
    assert moved <= accounted
    if name != "FedSGD":  # which takes one batch of two a round
        assert moved == accounted if kind == "shuffled" else moved > 0


@algorithms
def test_a_client_s_weight_and_the_others_updates_do_not_tell_how_many_examples_it_holds(name):
    sampler = Poisson(batch_size=4)  # of four: every example in every batch
    model = linear(bias=name == "FedBN")
    defense = DPSGD(delta=1e-5, clip_norm=CLIP, noise_multiplier=1.0)
    made = prepared(model=model, algorithm=ALGORITHMS[name](sampler), defense=defense)
    without = dataclasses.replace(made, members=(torch.arange(24) != 0)[None])
    (_, full), (_, less) = play(made), play(without)
    assert torch.equal(full.weights[0], less.weights[0])
    apart = flat(full.updates[0], 2)[0] - flat(less.updates[0], 2)[0]
    assert (apart[1:] == 0).all()
    # One step: the update is −lr (sum + noise)/4, and SCAFFOLD's control the gradient itself.
    lr = made.algorithm.lr
    moved = CLIP / 4 * (1 if not name.startswith("SCAFFOLD") else (1 + lr**-2) ** 0.5) * lr
    assert 0 < apart[0].norm() <= moved + ROUNDING
