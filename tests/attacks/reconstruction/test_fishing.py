"""Fishing for one example of a batch, of one client's or of a cohort's sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import psnr
from attacks.reconstruction.fishing import Fishing
from attacks.reconstruction.fully_connected import LayerKnowledge, layer_input
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import initial_parameters
from fl_core.optimizers import Tree
from tests.malicious_rounds import CLASSES, SHAPE, spread, updates

POOL, _ = digits()
LAYER = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=SHAPE)


def perceptron(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tree]:
    model = MLP(SHAPE, CLASSES, hidden=(64,))
    return model.to(dtype), {name: value.to(dtype) for name, value in initial_parameters(model, 0).items()}


def mean_gradient(model: nn.Module, sent: Tree, rows: Tensor, labels: Tensor, clients: int = 1) -> Tree:
    """The mean gradient [...] of clients of equal size, from the sum of their updates."""
    dtype = next(iter(sent.values())).dtype
    plan = [[part] for part in rows.view(clients, -1)]
    moved = updates(model, spread(sent, clients), POOL.images.to(dtype), labels, plan)
    return {name: -value.sum(0) / clients for name, value in moved.items()}


def below(gradient: Tree) -> Tensor:
    """What is below the output layer, as one vector."""
    return torch.cat([value.flatten() for name, value in gradient.items() if not name.startswith("head")])


@pytest.mark.parametrize("clients", [1, 8])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 150), (torch.float32, 50)])
def test_one_example_of_256_is_left_and_read_off_the_first_layer(clients: int, dtype: torch.dtype, least: float):
    model, start = perceptron(dtype)
    rows = torch.arange(256)
    attack = Fishing(target=3)
    catch = attack.run(
        lambda sent: mean_gradient(model, sent, rows, POOL.labels, clients), start, 256, attack.direction(start)
    )
    assert 0.5 < catch.passing < 1.05
    assert 3 <= catch.rounds <= 12  # halves of 256
    picture, _ = layer_input({name: value[None] for name, value in catch.gradient.items()}, LAYER)
    best = psnr(picture.clamp(0, 1).expand(256, *SHAPE), POOL.images[rows].to(dtype))
    assert best.max() > least
    # It is the one that is largest along the direction.
    weight, bias = start["hidden.0.weight"], start["hidden.0.bias"]
    features = ((2 * POOL.images[rows].to(dtype).flatten(1) - 1) @ weight.T + bias).relu()
    assert best.argmax() == int((features @ attack.direction(start).to(dtype)).argmax())


def test_what_is_left_points_where_the_one_examples_gradient_does():
    model, start = perceptron()
    rows, attack = torch.arange(128), Fishing(target=0)
    direction = attack.direction(start)
    catch = attack.run(lambda sent: mean_gradient(model, sent, rows, POOL.labels), start, 128, direction)
    picture, _ = layer_input({name: value[None] for name, value in catch.gradient.items()}, LAYER)
    one = torch.tensor([int(psnr(picture.clamp(0, 1).expand(128, *SHAPE), POOL.images[rows].double()).argmax())])
    for cutoff in (None, -torch.inf):  # as one of the class, and as any
        alone = below(mean_gradient(model, attack.cast(start, direction, cutoff), one, POOL.labels))
        if alone.norm() > 0:
            assert float(torch.cosine_similarity(below(catch.gradient), alone, 0).abs()) > 0.999999
    honest = below(mean_gradient(model, start, rows, POOL.labels))
    assert float(torch.cosine_similarity(honest, below(mean_gradient(model, start, one, POOL.labels)), 0)) < 0.9


def test_a_class_of_one_example_takes_one_round_on_any_model():
    model = CNN(SHAPE, CLASSES, width=4).double()
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    labels = POOL.labels.clone()
    labels[:64] = 1
    labels[17] = 4
    attack = Fishing(target=4)
    direction = attack.direction(start)
    catch = attack.run(lambda sent: mean_gradient(model, sent, torch.arange(64), labels), start, 64, direction)
    assert catch.rounds == 1
    assert catch.passing == pytest.approx(1, abs=1e-6)
    alone = below(mean_gradient(model, attack.cast(start, direction), torch.tensor([17]), labels))
    assert torch.allclose(64 * below(catch.gradient), alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lonely", [True, False], ids=["by class", "by feature"])
def test_a_catch_is_one_examples_own_gradient_under_a_model_for_the_attacks_that_invert_those(lonely: bool):
    model = CNN(SHAPE, CLASSES, width=4).double()
    start = {name: value.double() for name, value in initial_parameters(model, 0).items()}
    labels = torch.arange(len(POOL)) % 4
    if lonely:
        labels[17] = 7
    attack = Fishing(target=7 if lonely else 2)
    direction = attack.direction(start)
    catch = attack.run(lambda sent: mean_gradient(model, sent, torch.arange(32), labels), start, 32, direction)
    sent, found, label = attack.single(catch, start, direction)
    own = [mean_gradient(model, sent, torch.tensor([row]), torch.full_like(labels, label)) for row in range(32)]
    apart = [max(float((found[name] - each[name]).abs().max()) for name in start) for each in own]
    # The row is steep, so gradients are long; of a catch by feature others may pass a little.
    assert min(apart) < 1e-4 * sorted(apart)[1]
    if lonely:
        assert apart.index(min(apart)) == 17


def test_examples_that_agree_stay_together():
    model, start = perceptron()
    rows, attack = torch.zeros(16, dtype=torch.long), Fishing(target=0)
    catch = attack.run(lambda sent: mean_gradient(model, sent, rows, POOL.labels), start, 16, attack.direction(start))
    assert catch.passing == pytest.approx(8, abs=0.1)  # each is halfway through the cutoff
    assert catch.rounds <= 4
    picture, _ = layer_input({name: value[None] for name, value in catch.gradient.items()}, LAYER)
    assert psnr(picture.clamp(0, 1), POOL.images[:1].double())[0] > 100


def test_bad_input_is_refused():
    _, start = perceptron()
    with pytest.raises(InputError, match="it must be the output layer's, and have class 10"):
        Fishing(target=10).direction(start)
    with pytest.raises(InputError, match=r"out\.weight is missing"):
        Fishing(target=1, weight="out.weight").direction(start)
    with pytest.raises(InputError, match=r"attack\.rounds"):
        Fishing(target=1, rounds=1)
    broken = {name: torch.full_like(value, torch.nan) for name, value in start.items()}
    attack = Fishing(target=1)
    with pytest.raises(InputError, match="NaN or infinite"):
        attack.run(lambda _: broken, start, 8, attack.direction(start))
