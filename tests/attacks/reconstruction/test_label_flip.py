"""Two rounds with two classes exchanged in the second: what is left is the flipped examples'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.pictures import psnr
from attacks.reconstruction.fully_connected import LayerKnowledge, layer_input
from attacks.reconstruction.label_flip import FlipKnowledge, Isolated, LabelFlip, purity
from fl_core.architectures import CNN, MLP
from fl_core.data import digits
from fl_core.errors import InputError
from fl_core.models import initial_parameters
from fl_core.views import SecureServer
from tests.malicious_rounds import CLASSES, SHAPE, seen, updates
from tests.observations import observation

POOL, _ = digits()
CLIENTS, BATCH, SEAT = 8, 16, 3


def isolated(model: nn.Module, labels: Tensor, attack: LabelFlip, dtype: torch.dtype = torch.float64) -> Isolated:
    """The attack on seat 3 of eight clients with 16 examples each."""
    start = {name: value.to(dtype)[None] for name, value in initial_parameters(model, 0).items()}
    played = []
    for sent in attack.broadcast(start, CLIENTS, SEAT):
        each = {name: value[0] for name, value in sent.items()}
        plan = [[rows] for rows in torch.arange(CLIENTS * BATCH).view(CLIENTS, BATCH)]
        played.append((updates(model.to(dtype), each, POOL.images.to(dtype), labels, plan, lr=0.5), each))
    return attack.run(seen(*played), FlipKnowledge(lr=0.5))


def labelled(victims: dict[int, int]) -> Tensor:
    """Labels of which the victim's are 0 but for some, and the others' are as they are."""
    labels = POOL.labels.clone()
    labels[SEAT * BATCH : (SEAT + 1) * BATCH] = 0
    for place, label in victims.items():
        labels[SEAT * BATCH + place] = label
    return labels


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 150), (torch.float32, 50)])
def test_the_only_example_of_a_class_is_read_exactly_off_the_sum(dtype: torch.dtype, least: float):
    found = isolated(MLP(SHAPE, CLASSES, hidden=(32,)), labelled({5: 7}), LabelFlip(first=7, second=2), dtype)
    assert float(purity(found.gradient["hidden.0.weight"])[0]) == pytest.approx(1, abs=1e-6)
    layer = LayerKnowledge(weight="hidden.0.weight", bias="hidden.0.bias", shape=SHAPE)
    picture, _ = layer_input(found.gradient, layer)
    assert psnr(picture.clamp(0, 1), POOL.images[SEAT * BATCH + 5][None].to(dtype))[0] > least


def test_two_examples_are_left_as_two():
    found = isolated(MLP(SHAPE, CLASSES, hidden=(32,)), labelled({5: 7, 9: 2}), LabelFlip(first=7, second=2))
    values = torch.linalg.svdvals(found.gradient["hidden.0.weight"][0])
    assert values[1] > 1e-2 * values[0]
    assert values[2] < 1e-9 * values[0]
    assert float(purity(found.gradient["hidden.0.weight"])[0]) < 0.999


def test_classes_that_the_victim_does_not_have_leave_nothing_whoever_else_has_them():
    found = isolated(MLP(SHAPE, CLASSES, hidden=(32,)), labelled({}), LabelFlip(first=7, second=2))
    assert found.gradient["hidden.0.weight"].abs().max() < 1e-12
    # Of the output layer the chances are exchanged, which is no example's.
    assert found.gradient["head.bias"].abs().max() > 1e-4


def test_below_the_output_layer_of_any_model_it_is_that_examples_own_gradient():
    model = CNN(SHAPE, CLASSES, width=4)
    attack = LabelFlip(first=7, second=2)
    labels = labelled({5: 7})
    found = isolated(model, labels, attack)
    start = {name: value.double() for name, value in initial_parameters(model.float(), 0).items()}
    model.double()
    one = [[torch.tensor([SEAT * BATCH + 5])]]
    alone = [
        updates(model, {name: value[None] for name, value in sent.items()}, POOL.images.double(), labels, one)
        for sent in (start, attack.flipped(start))
    ]
    for name in start:
        if not name.startswith("head"):
            expected = (alone[1][name] - alone[0][name]) / BATCH
            assert torch.allclose(found.gradient[name], expected, rtol=1e-6, atol=1e-10)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="two classes are exchanged"):
        LabelFlip(first=1, second=1)
    attack = LabelFlip(first=1, second=2)
    with pytest.raises(InputError, match=r"head\.weight has no classes 1 and 2"):
        attack.flipped({"hidden.0.weight": torch.zeros(4, 4)})
    with pytest.raises(InputError, match="malicious_server"):
        attack.run(observation(SecureServer), FlipKnowledge())  # type: ignore[arg-type]
    once = {"head.weight": torch.zeros(2, 3, 4), "head.bias": torch.zeros(2, 3)}
    with pytest.raises(InputError, match=r"round 1 was not recorded; recorded: \[0\]"):
        attack.run(seen((once, once)), FlipKnowledge())
    twice = seen((once, once), (once, once))
    twice.cohorts[1] = torch.tensor([[0, 5]])
    with pytest.raises(InputError, match="different cohorts"):
        attack.run(twice, FlipKnowledge())
