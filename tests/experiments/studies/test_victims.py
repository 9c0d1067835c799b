"""Rounds of victims: what the attacker sees is what the defence really sends, and what it is told is true."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from defenses.base import Defense
from defenses.composed import composed
from defenses.dp_fedavg import DPFedAvg
from defenses.dp_fedavg_shares import DPFedAvgShares
from defenses.dp_sgd import DPSGD
from defenses.secagg.defense import SecAgg
from experiments.studies.clients import flat, initial
from experiments.studies.victims import Victims, drawn, median_length
from fl_core.architectures import MLP
from fl_core.data import digits

LR = 0.2


def victims(count: int = 4, clients: int = 1, examples: int = 1, **more) -> Victims:
    pool, _ = digits(limit=200)
    model = MLP(pool.shape, 10, hidden=(24,))
    start = initial(model, 0, torch.device("cpu"))
    rows = drawn(pool, count, clients, examples, 0)
    return Victims(model=model, start=start, pool=pool, rows=rows, lr=LR, **more).prepared()


def by_hand(scene: Victims, victim: int) -> torch.Tensor:
    """Minus the rate times the mean gradient over all the victim's pictures."""
    scene.model.load_state_dict({name: value[0] for name, value in scene.start.items()})
    loss = F.cross_entropy(scene.model(scene.images[victim]), scene.labels[victim])
    gradient = torch.autograd.grad(loss, list(scene.model.parameters()))
    return -scene.lr * torch.cat([value.flatten() for value in gradient])


@pytest.mark.parametrize(("clients", "examples"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_an_update_or_a_mean_of_them_is_one_step_on_the_victim_s_pictures(clients: int, examples: int):
    scene = victims(clients=clients, examples=examples)
    seen = scene.updates("a test")
    assert seen.view == ("server" if clients == 1 else "secure_server")
    for victim, update in enumerate(flat(seen.moved)):
        torch.testing.assert_close(update, by_hand(scene, victim), rtol=0, atol=1e-6)
    told = scene.knowledge()
    assert (told.examples, told.labels, told.lr) == (clients * examples, None, LR)


def test_all_victims_were_sent_the_same_model_and_hold_pictures_of_their_own():
    scene = victims(count=5, clients=2, examples=2)
    sent = flat(scene.updates("a test").sent)
    assert all(torch.equal(one, other) for one, other in pairwise(sent))
    assert len(scene.rows.unique()) == scene.rows.numel()


def test_local_steps_and_epochs_are_taken():
    once, more = victims(examples=4), victims(examples=4, steps=2, epochs=3)
    assert (more.knowledge().steps, more.knowledge().epochs) == (2, 3)
    ratio = flat(more.updates("a test").moved).norm(dim=1) / flat(once.updates("a test").moved).norm(dim=1)
    assert ratio.min() > 3  # six steps of half the pictures go further than one


def shares(noise_multiplier: float) -> Defense:
    """Noise in shares of the sum, under masks."""
    noise = DPFedAvgShares(delta=1e-5, clip_norm=0.1, noise_multiplier=noise_multiplier, bits=24)
    return composed({"dp": noise, "masks": SecAgg()})


@pytest.mark.parametrize(
    ("defense", "clients", "examples"),
    [
        (DPSGD(delta=1e-5, clip_norm=0.5, noise_multiplier=0.7), 1, 1),
        (DPSGD(delta=1e-5, clip_norm=0.5, noise_multiplier=0.7), 1, 4),
        (DPFedAvg(delta=1e-5, clip_norm=0.1, noise_multiplier=0.7, noise_by="clients"), 1, 1),
        (DPFedAvg(delta=1e-5, clip_norm=0.1, noise_multiplier=0.7, noise_by="clients"), 1, 4),
        (shares(0.7), 3, 1),
    ],
)
def test_the_noise_that_an_adaptive_attacker_is_told_of_is_the_noise_there_is(defense, clients: int, examples: int):
    scene = victims(count=6, clients=clients, examples=examples, defense=defense)
    quiet = shares(1e-3) if clients > 1 else dataclasses.replace(defense, noise_multiplier=1e-9)
    noise = flat(scene.updates("a test").moved) - flat(
        victims(count=6, clients=clients, examples=examples, defense=quiet).updates("a test").moved
    )
    told = scene.knowledge(adaptive=True)
    # 6 × 1,810 draws: the deviation's relative standard error is .7%; 4% is beyond five of them.
    assert noise.std().item() == pytest.approx(told.noise, rel=0.04)
    assert scene.knowledge().noise == 0
    if told.clip_norm is not None:
        lengths = flat(
            victims(count=6, clients=clients, examples=examples, defense=quiet).updates("a test").moved
        ).norm(dim=1)
        assert lengths.max() <= told.clip_norm * (1 + 1e-4)
        assert lengths.max() >= told.clip_norm * (1 - 1e-4)  # the clip bites


def test_under_masks_the_sum_is_that_of_the_updates():
    plain, masked = victims(clients=3), victims(clients=3, defense=SecAgg())
    torch.testing.assert_close(
        flat(masked.updates("a test").moved), flat(plain.updates("a test").moved), rtol=0, atol=1e-6
    )


def test_the_median_length_is_that_of_single_public_pictures():
    scene = victims()
    public, _ = digits(limit=30, seed=9)
    each = dataclasses.replace(scene, pool=public, rows=torch.arange(30).view(30, 1, 1), defense=Defense())
    lengths = torch.stack([by_hand(each, one).norm() for one in range(30)])
    assert median_length(scene, public) == pytest.approx(lengths.median().item(), rel=1e-4)
