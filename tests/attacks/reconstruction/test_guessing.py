"""An attacker who is not told how clients trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacks.pictures import psnr
from attacks.reconstruction import presets
from attacks.reconstruction.guessing import Guessing, Recipe
from attacks.reconstruction.objectives import Distance
from experiments.studies.clients import initial
from experiments.studies.victims import Victims, drawn
from fl_core.architectures import CNN
from fl_core.data import digits
from fl_core.errors import InputError

POOL, _ = digits(limit=60, seed=3)
# An update's length tells how far clients went, of which a cosine sees little.
ATTACK = presets.inverting_gradients(iterations=150, restarts=1, distance=Distance(measure="squared"))


def victims(epochs: int, lr: float = 0.1) -> Victims:
    model = CNN(POOL.shape, 10, width=8, halve="stride")
    start = initial(model, 0, torch.device("cpu"))
    return Victims(model=model, start=start, pool=POOL, rows=drawn(POOL, 3, 1, 1, 0), lr=lr, epochs=epochs)


def test_the_recipe_that_clients_followed_is_the_one_believed():
    scene = victims(epochs=6)
    guess = Guessing(attack=ATTACK, recipes=[Recipe(epochs=1), Recipe(epochs=6), Recipe(epochs=20)])
    told = scene.knowledge(labels=True)
    found = guess.run(scene.updates("a test"), told, backend="vmap")
    assert [method[-1] for method in found.method] == ["1"] * 3
    assert found.evaluations.tolist() == [150 * (1 + 6 + 20)] * 3
    alone = ATTACK.run(scene.updates("a test"), told, backend="vmap")
    assert torch.equal(found.images, alone.images)
    assert psnr(found.selected()[:, 0], scene.images[:, 0]).mean() > 15


def test_what_is_not_guessed_stays_as_it_was_told():
    told = victims(epochs=2).knowledge()
    assert Recipe(lr=0.5).of(told).epochs == 2
    assert Recipe(lr=0.5).of(told).lr == 0.5
    assert Recipe(steps=1, epochs=3).of(told).lr == told.lr


def test_guessing_needs_guesses_and_keeps_no_checkpoint(tmp_path: Path):
    with pytest.raises(InputError, match="at least one recipe"):
        Guessing(attack=ATTACK, recipes=[])
    scene = victims(epochs=1)
    with pytest.raises(InputError, match="no checkpoint"):
        Guessing(attack=ATTACK, recipes=[Recipe()]).run(
            scene.updates("a test"), scene.knowledge(), checkpoint=tmp_path / "part"
        )
