"""The published attacks on the engine's own updates: what each must find, and what it must not look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import match, psnr
from attacks.reconstruction import presets
from attacks.reconstruction.base import Knowledge, Reconstruction, Updates
from attacks.reconstruction.gradient_matching import GradientMatching
from experiments.studies.clients import initial
from experiments.studies.victims import Victims, drawn
from fl_core.architectures import CNN, LeNet
from fl_core.data import ImageSet, digits
from fl_core.errors import InputError

SHAPE, LR = (1, 8, 8), 0.1
POOL, _ = digits(limit=100, seed=3)


def victims(model: nn.Module, count: int = 3, examples: int = 1, pool: ImageSet = POOL, **more: Any) -> Victims:
    start = initial(model, 0, torch.device("cpu"))
    rows = drawn(pool, count, 1, examples, 0)
    return Victims(model=model, start=start, pool=pool, rows=rows, lr=LR, **more)


def smooth() -> nn.Module:
    return LeNet(SHAPE, 10)


def cnn() -> nn.Module:
    return CNN(SHAPE, 10, width=8, halve="stride")


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )


def attacked(attack: GradientMatching, scene: Victims, **told: Any) -> Reconstruction:
    knowledge = dataclasses.replace(scene.knowledge(), **told)
    return attack.run(scene.updates(attack.name), knowledge, backend="vmap")


def decibels(found: Reconstruction, scene: Victims) -> Tensor:
    """The mean PSNR [victims] of the attacker's choice."""
    pairs = zip(found.selected(), scene.images, strict=True)
    return torch.tensor([psnr(own[match(own, true)], true).mean() for own, true in pairs])


def test_dlg_finds_pictures_and_soft_labels_to_float32_s_last_digits():
    scene = victims(smooth())
    found = attacked(presets.dlg(iterations=300, restarts=2), scene)
    assert decibels(found, scene).min() > 90
    assert torch.equal(found.selected_labels(), scene.labels)
    assert found.evaluations.tolist() == [600] * 3


def test_idlg_reads_the_label_first_and_needs_no_more():
    scene = victims(smooth())
    found = attacked(presets.idlg(iterations=200, restarts=2), scene)
    assert decibels(found, scene).min() > 60
    assert torch.equal(found.selected_labels(), scene.labels)


@pytest.mark.parametrize("preset", [presets.inverting_gradients, presets.layer_weighted, presets.adaptive])
def test_cosines_find_pictures_through_rectified_units(preset):
    scene = victims(cnn())
    assert decibels(attacked(preset(iterations=250, restarts=2), scene), scene).mean() > 22


def test_an_untrained_network_paints_the_picture():
    scene = victims(cnn())
    painted = attacked(presets.deep_image_prior(iterations=300, restarts=2), scene)
    blind = attacked(presets.prior_alone(iterations=100, restarts=1), scene)
    assert (decibels(painted, scene) > decibels(blind, scene) + 8).all()


def test_soft_labels_and_a_cosine_go_together():
    scene = victims(smooth())
    attack = presets.inverting_gradients(labels="soft", optimizer="lbfgs", lr=1.0, iterations=300, total_variation=0.0)
    assert torch.equal(attacked(attack, scene).selected_labels(), scene.labels)


def test_moments_before_batch_normalisation_are_met():
    scene = victims(normalised(), count=2, examples=4)
    settings = {"iterations": 150, "restarts": 2}
    labels = scene.labels
    with_moments = attacked(presets.grad_inversion(**settings, batch_norm=1.0), scene, labels=labels)
    without = attacked(presets.grad_inversion(**settings, batch_norm=0.0), scene, labels=labels)

    def missed(found: Reconstruction) -> Tensor:
        conv = nn.Conv2d(1, 8, 3, padding=1, stride=2)
        conv.load_state_dict({"weight": scene.start["0.weight"][0], "bias": scene.start["0.bias"][0]})
        seen = [conv(pictures).detach() for pictures in (found.selected().flatten(0, 1), scene.images.flatten(0, 1))]
        moments = [value.unflatten(0, (2, 4)).mean((1, 3, 4)) for value in seen]
        return (moments[0] - moments[1]).square().sum(1)

    assert (missed(with_moments) < 0.5 * missed(without)).all()


def test_restarts_that_are_to_agree_end_nearer_to_one_another():
    scene = victims(cnn(), count=2)
    settings = {"iterations": 100, "restarts": 3, "length": 0.0, "batch_norm": 0.0}
    spread = [
        attacked(presets.grad_inversion(**settings, group=weight), scene).images.std(1).mean() for weight in (1.0, 1e-6)
    ]
    assert spread[0] < 0.7 * spread[1]


def test_local_steps_on_one_picture_are_simulated():
    scene = victims(cnn(), epochs=4)
    told = attacked(presets.inverting_gradients(iterations=200, restarts=1), scene, labels=scene.labels)
    assert decibels(told, scene).min() > 20
    assert told.evaluations.tolist() == [4 * 200] * 3  # a simulation of four steps costs four gradients


def test_simulating_the_steps_beats_taking_the_update_for_one_gradient():
    model = cnn()
    scene = Victims(**(vars(victims(model, epochs=6)) | {"lr": 1.0}))  # steps that go far
    attack = presets.inverting_gradients(iterations=200, restarts=1)
    simulated = attacked(attack, scene, labels=scene.labels)
    ignorant = attacked(attack, scene, labels=scene.labels, epochs=1)
    assert decibels(simulated, scene).mean() > decibels(ignorant, scene).mean() + 2


def test_pictures_of_several_epochs_come_out_as_one_set():
    scene = victims(cnn(), count=2, examples=2, steps=2, epochs=2)
    found = attacked(presets.local_steps(iterations=60, restarts=2), scene, labels=scene.labels)
    assert found.images.shape == (2, 2, 2, *SHAPE)
    assert found.images.isfinite().all()
    assert found.evaluations.tolist() == [2 * 2 * 60] * 2


def test_the_prior_alone_never_looks_at_the_update():
    one, other = victims(cnn()), victims(cnn(), pool=digits(limit=100, seed=8)[0])
    attack = presets.prior_alone(iterations=30, restarts=2)
    found = attacked(attack, one)
    assert torch.equal(found.images, attacked(attack, other).images)
    assert found.evaluations.tolist() == [0] * 3


@pytest.mark.parametrize("other", [{"total_variation": 0.5}, {"lr": 0.01}, {"iterations": 6}])
def test_a_checkpoint_of_other_settings_is_refused(other: dict[str, Any], tmp_path: Path):
    scene, settings = victims(cnn(), count=1), {"iterations": 4, "restarts": 1, "part": 2}
    updates, told, file = scene.updates("a test"), scene.knowledge(), tmp_path / "descent"
    presets.inverting_gradients(**settings).run(updates, told, backend="vmap", checkpoint=file)
    with pytest.raises(InputError, match="another reconstruction"):
        presets.inverting_gradients(**(settings | other)).run(updates, told, backend="vmap", checkpoint=file)
    presets.inverting_gradients(**settings).run(updates, told, backend="vmap", checkpoint=file)


def test_a_model_for_each_victim_gives_the_same_as_one_for_all():
    scene = victims(cnn())
    updates = scene.updates("a test")
    attack = presets.inverting_gradients(iterations=3, restarts=2, total_variation=1e-2)
    shared = attack.run(updates, scene.knowledge(), backend="vmap")
    nudged = {name: value.clone() for name, value in updates.sent.items()}
    nudged["head.bias"][0] += 1e-7  # the models are no longer one, and hardly differ
    own = attack.run(dataclasses.replace(updates, sent=nudged), scene.knowledge(), backend="vmap")
    torch.testing.assert_close(shared.objective, own.objective, rtol=0, atol=1e-4)


def test_double_precision_goes_further():
    scene = victims(smooth(), count=1)
    updates = scene.updates("a test")
    exact = Updates(
        view=updates.view,
        sent={name: value.double() for name, value in updates.sent.items()},
        moved={name: value.double() for name, value in updates.moved.items()},
    )
    model = smooth().double()
    simulated = Knowledge(model=model, shape=SHAPE, classes=10, lr=LR, labels=scene.labels)
    found = presets.idlg(iterations=200, restarts=1).run(exact, simulated, backend="vmap")
    assert found.images.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", [presets.inverting_gradients, presets.dlg, presets.deep_image_prior])
def test_cuda_begins_where_the_cpu_does_and_goes_the_same_way(preset):
    scene = victims(smooth())
    updates, told = scene.updates("a test"), scene.knowledge()
    attack = preset(iterations=3, restarts=2)
    here, there = (attack.run(updates, told, device=device, backend="vmap") for device in ("cpu", "cuda"))
    assert there.images.device.type == "cpu"
    torch.testing.assert_close(there.images, here.images, rtol=0, atol=1e-3)
    assert torch.equal(there.selected_labels(), here.selected_labels())


@pytest.mark.parametrize(
    ("attack", "told", "said"),
    [
        (presets.dlg(), {"lr": None}, "needs the learning rate"),
        (presets.inverting_gradients(), {"lr": None, "epochs": 3}, "several local steps"),
        (presets.inverting_gradients(), {"labels": torch.zeros(2, 1, dtype=torch.long)}, "labels of 2 victims"),
    ],
)
def test_what_an_attack_has_to_be_told_is_asked_for(attack, told, said):
    with pytest.raises(InputError, match=said) as caught:
        attacked(attack, victims(cnn()), **told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"examples": 0}, "batch_size"),
        ({"examples": 3, "steps": 2}, "cannot be split"),
        ({"examples": 2, "labels": torch.zeros(1, 3, dtype=torch.long)}, r"\[victims, 2\]"),
        ({"lr": 0.0}, "lr"),
        ({"noise": -1.0}, "noise"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_knowledge_that_means_nothing_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Knowledge(model=cnn(), shape=SHAPE, classes=10, **wrong)


def test_restarts_that_are_to_agree_must_be_several():
    with pytest.raises(InputError, match="at least two"):
        presets.grad_inversion(restarts=1)
