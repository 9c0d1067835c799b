"""Exact recoveries as oracles, and a gradient-matching attack that earns its picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from attacks.pictures import psnr
from attacks.reconstruction.base import Knowledge, Reconstruction, updates_of
from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.labels import infer_single_label, output_bias
from defenses.base import Defense
from fl_core.algorithms.fedavg import FedAvg
from fl_core.architectures import CNN
from fl_core.data import ImageSet, digits
from fl_core.errors import InputError
from fl_core.federation import Federation, run
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.sampling import ExampleFeed, Shuffled
from fl_core.views import Recorder, Server

SHAPE, CLASSES = (1, 8, 8), 10


def one_step_updates(model: nn.Module, data: ImageSet, seeds: list[int], dtype: torch.dtype) -> Tree:
    """The engine's own updates: lane i takes one step of rate 1 on example i alone [examples, ...]."""
    each = [initial_parameters(model, seeds[i % len(seeds)]) for i in range(len(data))]
    start = {name: torch.stack([one[name] for one in each]).to(dtype) for name in each[0]}
    plan = [[torch.tensor([i])] for i in range(len(data))]
    feed = ExampleFeed(data.images.to(dtype), data.labels, plan)
    moved = descend(start, ClassificationLosses(model), feed, SGD(lr=1.0), backend="vmap")
    return {name: moved[name] - start[name] for name in start}


def observed(data: ImageSet, model: nn.Module, *, lr: float = 0.1) -> Server:
    """What a server sees of one round in which every example is a client of its own."""
    federation = Federation(
        model=model,
        data=data,
        owners=torch.arange(len(data)),
        members=torch.ones(1, len(data), dtype=torch.bool),
        sizes=torch.ones(len(data), dtype=torch.long),
        algorithm=FedAvg(sampler=Shuffled(local_epochs=1, batch_size=1), lr=lr),
        defense=Defense(),
        rounds=1,
        run=0,
        replica_ids=[0],
        backend="vmap",
    )
    recorder = Recorder(view=Server)
    run(federation, recorder)
    observation = recorder.observation()
    assert isinstance(observation, Server)
    return observation


def cnn() -> CNN:
    return CNN(SHAPE, CLASSES, width=8, halve="stride")


def knowledge(model: nn.Module) -> Knowledge:
    return Knowledge(model=model, shape=SHAPE, classes=CLASSES)


# Oracles


def fully_connected() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, CLASSES))


def divided(updates: Tree) -> Tensor:
    """x = ∂W/∂b in the first layer's row of the largest bias gradient [examples, 64]; the sign cancels."""
    row = updates["1.bias"].abs().argmax(1)
    lane = torch.arange(len(row))
    return updates["1.weight"][lane, row] / updates["1.bias"][lane, row, None]


def test_a_fully_connected_first_layer_gives_its_input_away_exactly():
    data, _ = digits(limit=50)
    found = divided(one_step_updates(fully_connected().double(), data, [0, 1], torch.float64))
    assert (found - data.images.flatten(1).double()).abs().max() <= 1e-12


def test_in_float32_the_same_input_comes_back_at_more_than_140_db():
    data, _ = digits(limit=50)
    found = divided(one_step_updates(fully_connected(), data, [0, 1], torch.float32))
    error = (found - data.images.flatten(1)).square().mean(1)
    assert (-10 * error.log10()).min() > 140


def test_the_label_of_a_single_example_is_inferred_always():
    data, _ = digits(limit=300)
    gradient = {n: -u for n, u in one_step_updates(cnn(), data, [0, 1, 2], torch.float32).items()}
    assert torch.equal(infer_single_label(gradient, CLASSES), data.labels)


def test_the_output_bias_is_the_last_vector_with_one_entry_a_class():
    tree = {"a.bias": torch.zeros(3, 10), "b.weight": torch.zeros(3, 10, 10), "b.bias": torch.zeros(3, 10)}
    assert output_bias(tree, 10) == "b.bias"
    with pytest.raises(InputError, match="no output bias with one entry a class"):
        output_bias(tree, 7)


# Gradient matching


def attacked(attack: GradientMatching, seen: Server, told: Knowledge, **options: Any) -> Reconstruction:
    return attack.run(updates_of(seen, 0, attack.name), told, backend=options.pop("backend", "vmap"), **options)


ATTACK = GradientMatching(restarts=2, iterations=150)


@pytest.fixture(scope="module")
def victims() -> ImageSet:
    data, _ = digits(limit=3, seed=5)
    return data


@pytest.fixture(scope="module")
def found(victims: ImageSet) -> Reconstruction:
    return attacked(ATTACK, observed(victims, cnn()), knowledge(cnn()))


def test_an_undefended_update_gives_the_picture_away(found: Reconstruction, victims: ImageSet):
    pool, _ = digits()
    mean = pool.images.mean(0, keepdim=True)
    recovered = torch.as_tensor(psnr(found.selected()[:, 0].numpy(), victims.images.numpy()))
    blind = torch.as_tensor(psnr(mean.expand_as(victims.images).numpy(), victims.images.numpy()))
    assert (recovered > blind + 8).all(), (recovered, blind)
    assert torch.equal(found.selected_labels()[:, 0], victims.labels)


def test_the_answer_has_one_picture_a_victim_and_a_restart(found: Reconstruction):
    assert found.images.shape == (3, 2, 1, *SHAPE)
    assert found.objective.shape == (3, 2)
    assert found.chosen.shape == found.evaluations.shape == (3,)
    assert found.labels.shape == (3, 2, 1)
    assert found.evaluations.tolist() == [2 * 150] * 3
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert not torch.equal(found.images[:, 0], found.images[:, 1])


def test_the_restart_is_chosen_by_the_attacker_s_own_objective(found: Reconstruction, victims: ImageSet):
    # The objective again, in plain PyTorch, from what the server saw: no truth goes into it.
    model, seen = cnn(), observed(victims, cnn())
    model.load_state_dict({name: value[0] for name, value in seen.models[0].items()})
    for victim in range(3):
        update = torch.cat([-value[0, victim].flatten() for value in seen.updates[0].values()])
        own = []
        for picture in found.images[victim, :, 0]:
            loss = F.cross_entropy(model(picture[None]), found.selected_labels()[victim])
            grads = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
            rough = picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()
            own.append((1 - F.cosine_similarity(grads, update, dim=0) + ATTACK.total_variation * rough).item())
        assert found.objective[victim].tolist() == pytest.approx(own, abs=1e-4)
        assert found.chosen[victim] == torch.tensor(own).argmin()
    assert torch.equal(found.selected()[1], found.images[1, found.chosen[1]])


def test_the_learning_rate_need_not_be_known(victims: ImageSet):
    # The objective is an angle: updates of another rate give the same picture, but for rounding.
    short = GradientMatching(restarts=1, iterations=4)
    slow, fast = (attacked(short, observed(victims, cnn(), lr=lr), knowledge(cnn())) for lr in (0.25, 1.0))
    torch.testing.assert_close(slow.objective, fast.objective, rtol=0, atol=1e-2)
    assert torch.equal(slow.labels, fast.labels)


def test_backends_agree_on_the_attack(victims: ImageSet):
    # Few steps: a sign amplifies the last bit of a gradient near zero, so that long runs in float32 part.
    short = GradientMatching(restarts=2, iterations=3)
    seen = observed(victims, cnn())
    stacked, single = (attacked(short, seen, knowledge(cnn()), backend=b) for b in ("vmap", "loop"))
    torch.testing.assert_close(stacked.images, single.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(stacked.objective, single.objective, rtol=0, atol=1e-5)


def test_a_victim_s_restarts_do_not_depend_on_who_else_is_attacked(victims: ImageSet):
    short = GradientMatching(restarts=2, iterations=3)
    seen = observed(victims, cnn())
    only = dataclasses.replace(seen, updates={0: {n: u[:, 2:] for n, u in seen.updates[0].items()}})
    whole = attacked(short, seen, knowledge(cnn()))
    alone = attacked(short, only, knowledge(cnn()), victims=[2])
    torch.testing.assert_close(whole.images[2:], alone.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [list, sorted])
def test_labels_do_not_depend_on_the_order_of_the_parameters(order, victims: ImageSet):
    # A tree sorted by name, as files keep it, ends in another vector of 8 entries than the head's: a norm's.
    model = CNN(SHAPE, 8, width=4, norm="group")
    eight = ImageSet(victims.images, victims.labels % 8, tuple("01234567"))
    seen = observed(eight, model)
    given = dataclasses.replace(seen, updates={0: dict(order(seen.updates[0].items()))})
    told = Knowledge(model=model, shape=SHAPE, classes=8)
    answer = attacked(GradientMatching(restarts=1, iterations=1), given, told)
    assert torch.equal(answer.selected_labels()[:, 0], eight.labels)


# Updates that nothing can be made of


def spoilt(seen: Server, **leaves: Any) -> Server:
    return dataclasses.replace(seen, updates={0: {n: u.clone() for n, u in seen.updates[0].items()} | leaves})


def assert_refused(seen: Server, *needed: str, model: nn.Module | None = None) -> None:
    with pytest.raises(InputError) as caught:
        attacked(GradientMatching(restarts=1, iterations=1), seen, knowledge(model or cnn()))
    assert "\n" not in str(caught.value)
    for part in needed:
        assert part in str(caught.value)


def test_an_update_that_does_not_fit_the_model_is_refused(victims: ImageSet):
    seen = observed(victims, cnn())
    assert_refused(
        seen,
        "does not fit",
        "conv1.bias is (8,), and in the model (4,)",
        model=CNN(SHAPE, CLASSES, width=4, halve="stride"),
    )
    assert_refused(spoilt(seen, extra=torch.zeros(1, 3, 2)), "does not fit", "extra is (2,), and in the model missing")
    fewer = dataclasses.replace(seen, updates={0: {"head.bias": seen.updates[0]["head.bias"]}})
    assert_refused(fewer, "does not fit", "conv1.bias is missing")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_with_nan_is_refused(bad: float, victims: ImageSet):
    seen = observed(victims, cnn())
    bias = seen.updates[0]["head.bias"].clone()
    bias[0, 1, 3] = bad
    assert_refused(spoilt(seen, **{"head.bias": bias}), "NaN or infinite")


def test_an_update_of_zeros_is_refused(victims: ImageSet):
    seen = observed(victims, cnn())
    still = {name: torch.cat([u[:, :2], 0 * u[:, 2:]], 1) for name, u in seen.updates[0].items()}
    assert_refused(spoilt(seen, **still), "all zeros", "took no step")


@pytest.mark.parametrize(
    "wrong", [{"restarts": 0}, {"iterations": 0}, {"lr": 0.0}, {"total_variation": -1.0}, {"restarts": 1.5}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=rf"{next(iter(wrong))}"):
        GradientMatching(**wrong)


def test_the_gradient_is_the_update_s_opposite(victims: ImageSet):
    # What the attack rests on: one step of the engine is minus the rate times the gradient.
    seen, model = observed(victims, cnn(), lr=0.1), cnn()
    parameters = {name: value[0].requires_grad_() for name, value in seen.models[0].items()}
    loss = F.cross_entropy(functional_call(model, parameters, (victims.images[:1],)), victims.labels[:1])
    for (name, _), gradient in zip(
        parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(seen.updates[0][name][0, 0], -0.1 * gradient, rtol=0, atol=1e-6)
