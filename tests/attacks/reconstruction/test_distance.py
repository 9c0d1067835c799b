"""How two updates are compared: closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.reconstruction.base import Knowledge
from attacks.reconstruction.objectives import Distance
from fl_core.errors import InputError
from fl_core.optimizers import Tree


def knowledge(**more) -> Knowledge:
    return Knowledge(model=nn.Linear(2, 2), shape=(1, 1, 2), classes=2, lr=0.5, **more)


def tree(*values: list[float]) -> Tree:
    return {f"layer{place}": torch.tensor(value, dtype=torch.float64) for place, value in enumerate(values)}


def distance(how: Distance, guess: Tree, observed: Tree, told: Knowledge | None = None, clip=None) -> float:
    """Of one victim."""
    context = how.context({name: value[None] for name, value in observed.items()}, told or knowledge())
    return float(how(guess, {name: value[0] for name, value in context.items()}, clip))


def test_the_cosine_looks_at_directions_alone():
    guess, observed = tree([3.0, 0.0], [4.0]), tree([6.0, 0.0], [8.0])
    assert distance(Distance(), guess, observed) == pytest.approx(0, abs=1e-12)
    assert distance(Distance(), tree([0.0, 2.0], [0.0]), observed) == pytest.approx(1)
    assert distance(Distance(), tree([-3.0, 0.0], [-4.0]), observed) == pytest.approx(2)


def test_the_squared_distance_is_relative_to_the_observed_square():
    found = distance(Distance(measure="squared"), tree([1.0, 1.0], [1.0]), tree([1.0, 3.0], [0.0]))
    assert found == pytest.approx((0 + 4 + 1) / 10)


def test_a_known_clip_is_applied_to_the_guess():
    # The guess is five long; clipped to one it is the observed update to the bit.
    observed = tree([0.6], [0.8])
    how = Distance(measure="squared", clips=True)
    assert distance(how, tree([3.0], [4.0]), observed, clip=1.0) == pytest.approx(0, abs=1e-12)
    assert distance(how, tree([0.3], [0.4]), observed, clip=1.0) == pytest.approx(0.25)  # a short one is left alone
    assert distance(Distance(measure="squared"), tree([3.0], [4.0]), observed, clip=1.0) == pytest.approx(16)


def test_rising_weights_count_the_last_layer_most():
    how = Distance(measure="squared", weighting="rising")
    # Weights ½ and 1: (½·1 + 1·0) / (½·1 + 1·1) and (½·0 + 1·1) / 1.5.
    assert distance(how, tree([2.0], [1.0]), tree([1.0], [1.0])) == pytest.approx(1 / 3)
    assert distance(how, tree([1.0], [2.0]), tree([1.0], [1.0])) == pytest.approx(2 / 3)


def test_a_layer_that_is_all_noise_is_not_listened_to():
    # Noise .5 in the update is 1 in the gradient at rate ½; a layer of two entries is expected to have a square of 2.
    how = Distance(weighting="snr")
    observed = tree([1.0, 1.0], [10.0, 0.0])
    context = how.context({name: value[None] for name, value in observed.items()}, knowledge(noise=0.5))
    assert context["weight/layer0"].item() == 0
    assert context["weight/layer1"].item() == pytest.approx(0.98)
    assert distance(how, tree([5.0, -9.0], [1.0, 0.0]), observed, knowledge(noise=0.5)) == pytest.approx(0, abs=1e-12)


def test_where_everything_is_noise_everything_is_compared():
    how = Distance(weighting="snr")
    assert distance(how, tree([1.0], [1.0]), tree([1.0], [1.0]), knowledge(noise=9.0)) == pytest.approx(0, abs=1e-12)
    assert distance(how, tree([1.0], [-1.0]), tree([1.0], [1.0]), knowledge(noise=9.0)) == pytest.approx(0.01)


def test_the_more_noise_the_less_the_update_counts_against_the_prior():
    # Noise .25 in the update is .5 in the gradient: ¼ of the two entries' square of 1 each.
    how = Distance(weighting="snr")
    assert distance(how, tree([0.0, 1.0]), tree([1.0, 0.0]), knowledge()) == pytest.approx(1)
    assert distance(how, tree([0.0, 1.0]), tree([1.0, 0.0]), knowledge(noise=0.25)) == pytest.approx(0.5)


def test_entries_that_a_pruning_left_out_say_nothing():
    pruned = tree([1.0, 0.0], [0.0, 2.0])
    guess = tree([1.0, 7.0], [-7.0, 2.0])
    assert distance(Distance(support=True), guess, pruned) == pytest.approx(0, abs=1e-12)
    assert distance(Distance(), guess, pruned) > 0.5


@pytest.mark.parametrize("wrong", [{"measure": "angle"}, {"weighting": "falling"}])
def test_a_comparison_that_does_not_exist_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong.values()))):
        Distance(**wrong)
