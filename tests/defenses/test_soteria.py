"""Soteria's choice of features against a plain double loop, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.rules import MeanOfExamples
from defenses.soteria import Soteria, WithoutTellingFeatures
from fl_core.architectures import CNN, MLP, McMahanCNN
from fl_core.errors import InputError
from fl_core.lanes import descend
from fl_core.models import ClassificationLosses, initial_parameters
from fl_core.optimizers import SGD, Tree
from fl_core.rules import Step
from fl_core.sampling import ExampleFeed
from fl_core.seeds import generator

LANES, BATCH, SHAPE = 2, 3, (1, 6, 6)


def pictures(*lead: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(*lead, *shape, generator=generator(0, "pictures"))


def stacked(model: nn.Module, lanes: int = LANES) -> Tree:
    each = [initial_parameters(model, lane) for lane in range(lanes)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def map_of(model: nn.Module, share: float = 0.4, layer: str | None = None) -> WithoutTellingFeatures:
    (found,) = Soteria(share=share, layer=layer).for_model(model).example_maps()
    assert isinstance(found, WithoutTellingFeatures)
    return found


def loaded(model: nn.Module, variables: Tree, lane: int) -> nn.Module:
    model.load_state_dict({name: value[lane] for name, value in variables.items()})
    return model


def by_double_loop(features_of, variables: Tree, model: nn.Module, images: Tensor) -> Tensor:
    """|r_j| / ‖∂r_j/∂x‖ [lanes, batch, features], one example and one feature at a time."""
    found = []
    for lane in range(len(images)):
        loaded(model, variables, lane)
        for image in images[lane]:
            pixels = image.unsqueeze(0).requires_grad_()
            scores = []
            for feature in features_of(model, pixels)[0]:
                (slope,) = torch.autograd.grad(feature, pixels, retain_graph=True)
                scores.append(0.0 if feature == 0 else (feature.detach().abs() / slope.norm()).item())
            found.append(scores)
    return torch.tensor(found).view(*images.shape[:2], -1)


def hidden_units(model: MLP, pixels: Tensor) -> Tensor:
    units = (pixels - 0.5).flatten(1) * 2
    return torch.sigmoid(model.hidden[0](units))


def pooled(model: CNN, pixels: Tensor) -> Tensor:
    hidden = (pixels - 0.5) * 2
    for conv, normed in ((model.conv1, model.norm1), (model.conv2, model.norm2)):
        hidden = F.relu(F.max_pool2d(normed(conv(hidden)), 2))
    return hidden.flatten(1)


@pytest.mark.parametrize(
    ("model", "features_of"),
    [
        (MLP(SHAPE, 3, hidden=(11,), activation="sigmoid"), hidden_units),
        (CNN(SHAPE, 3, width=4), pooled),
        (CNN(SHAPE, 3, width=4, norm="group"), pooled),
    ],
    ids=["mlp", "cnn", "group norm"],
)
def test_scores_are_a_double_loop_s(model: nn.Module, features_of):
    variables, images = stacked(model), pictures(LANES, BATCH)
    scores = map_of(model).scores(variables, images)
    expected = by_double_loop(features_of, variables, model, images)
    assert expected.shape[-1] == (11 if isinstance(model, MLP) else 8)
    assert (expected > 0).any()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


class Doubling(nn.Module):
    """Features r = relu(a·x) of three pixels, a = (1, 2, 4): r_j / ‖∂r_j/∂x‖ is the pixel itself, 0 where it is off."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))
        self.head = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(F.relu(pixels.flatten(1) * self.slopes))
        return scores


def test_the_feature_that_tells_most_is_the_one_worked_out_by_hand():
    change = map_of(Doubling(), share=1 / 3)
    variables = {name: value.detach().unsqueeze(0) for name, value in Doubling().named_parameters()}
    images = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [-1.0, 0.5, 0.4]]).view(1, 3, 1, 1, 3)
    expected = torch.tensor([[[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.0, 0.5, 0.4]]])
    torch.testing.assert_close(change.scores(variables, images), expected)
    gradients = {"head.weight": torch.ones(1, 3, 2, 3), "head.bias": torch.ones(1, 3, 2), "slopes": torch.ones(1, 3, 3)}
    found = change.each(gradients, (images, torch.zeros(1, 3)), Step(variables, [], {}))
    assert found["head.weight"][0, :, 0].tolist() == [[0, 1, 1], [1, 1, 0], [1, 0, 1]]
    assert torch.equal(found["head.weight"][0, :, 1], found["head.weight"][0, :, 0])
    assert found["head.bias"] is gradients["head.bias"]
    assert found["slopes"] is gradients["slopes"]


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.1, 3), (0.2, 6), (0.25, 8), (0.9, 27), (1, 30)])
def test_exactly_the_stated_share_of_columns_is_zero_for_each_example(share: float, count: int):
    model = MLP(SHAPE, 4, hidden=(30,), activation="sigmoid")
    variables, images = stacked(model), pictures(LANES, BATCH)
    gradients = {name: torch.ones(LANES, BATCH, *value.shape[1:]) for name, value in variables.items()}
    found = map_of(model, share).each(gradients, (images, torch.zeros(LANES, BATCH)), Step(variables, [], {}))
    gone = (found["head.weight"] == 0).all(-2)
    assert (gone.sum(-1) == count).all()
    assert (found["head.weight"].sum((-1, -2)) == 4 * (30 - count)).all(), "and the other columns stay"
    scores = map_of(model, share).scores(variables, images)
    for chosen, score in zip(gone.flatten(0, 1), scores.flatten(0, 1), strict=True):
        assert count == 30 or score[chosen].min() >= score[~chosen].max()
    for name in gradients.keys() - {"head.weight"}:
        assert found[name] is gradients[name]


def trained(model: nn.Module, rule, backend: str, lanes: tuple[int, ...] = (0, 1), at_once: int | None = None) -> Tree:
    images, labels = pictures(12), torch.arange(12) % 3
    plan = [[[0, 1, 2, 3], [4, 5]], [[6], [7, 8, 9, 10, 11]]]
    rows = [[torch.tensor(batch) for batch in plan[lane]] for lane in lanes]
    start = stacked(model)
    return descend(
        {name: value[list(lanes)] for name, value in start.items()},
        ClassificationLosses(model),
        ExampleFeed(images, labels, rows),
        SGD(lr=0.5),
        rule=rule,
        backend=backend,
        examples_at_once=at_once,
    )


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_step_is_the_mean_gradient_without_each_example_s_columns(backend: str):
    model = MLP(SHAPE, 3, hidden=(10,), activation="sigmoid")
    defense = Soteria(share=0.3).for_model(model)
    found = trained(model, defense.example_rule(4.0), backend)
    images, labels = pictures(12), torch.arange(12) % 3
    for lane, batches in enumerate([[[0, 1, 2, 3], [4, 5]], [[6], [7, 8, 9, 10, 11]]]):
        loaded(model, stacked(model), lane)
        for batch in batches:
            now = {name: value.detach().clone().unsqueeze(0) for name, value in model.named_parameters()}
            sums = {name: torch.zeros_like(value[0]) for name, value in now.items()}
            scores = by_double_loop(hidden_units, now, model, images[batch].unsqueeze(0))[0]
            for row, score in zip(batch, scores, strict=True):
                loss = F.cross_entropy(model(images[[row]]), labels[[row]])
                values = torch.autograd.grad(loss, list(model.parameters()))
                for (name, _), value in zip(model.named_parameters(), values, strict=True):
                    if name == "head.weight":
                        value[:, score.topk(3).indices] = 0
                    sums[name] += value
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value -= 0.5 * sums[name] / len(batch)
        for name, value in model.named_parameters():
            torch.testing.assert_close(found[name][lane], value.detach(), rtol=0, atol=1e-5)


def test_backends_parts_of_a_batch_and_lanes_alone_agree():
    model = CNN(SHAPE, 3, width=4)
    rule = Soteria(share=0.4).for_model(model).example_rule(4.0)
    whole = trained(model, rule, "vmap")
    others = [trained(model, rule, "loop"), trained(model, rule, "vmap", at_once=2)]
    others.append({name: torch.cat([trained(model, rule, "vmap", (k,))[name] for k in (0, 1)]) for name in whole})
    for other in others:
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)
    plain = trained(model, MeanOfExamples(), "vmap")
    assert (plain["head.weight"] - whole["head.weight"]).abs().max() > 1e-3


def test_the_layer_is_the_last_one_or_the_one_that_is_named():
    model = McMahanCNN((1, 8, 8), 3, width=4)
    assert Soteria(share=0.1).for_model(model).layer == "head"
    assert Soteria(share=0.1, layer="hidden").for_model(model).layer == "hidden"
    scores = map_of(model, layer="hidden").scores(stacked(model), pictures(LANES, BATCH, shape=(1, 8, 8)))
    assert scores.shape[-1] == model.hidden.in_features
    first = MLP(SHAPE, 3, hidden=())
    scores = map_of(first, layer="head").scores(stacked(first), pictures(LANES, BATCH))
    torch.testing.assert_close(scores, (pictures(LANES, BATCH) - 0.5).abs().flatten(2))


def test_models_that_have_nothing_to_defend_are_refused_in_one_line():
    for model, why in (
        (nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten()), "Sequential has none"),
        (MLP(SHAPE, 3, hidden=()), "picture itself"),
    ):
        with pytest.raises(InputError, match=why) as caught:
            Soteria(share=0.1).for_model(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"defense\.layer is 'heda'.*did you mean 'head'"):
        Soteria(share=0.1, layer="heda").for_model(CNN(SHAPE, 3, width=4))


def test_a_layer_that_takes_several_rows_a_picture_is_refused():
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Linear(6, 2)
            self.head = nn.Linear(12, 3)

        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = self.head(self.each(pixels[:, 0]).flatten(1))
            return scores

    with pytest.raises(InputError, match=r"defense\.layer=each"):
        map_of(Rows(), layer="each").scores(stacked(Rows()), pictures(LANES, BATCH))
    assert map_of(Rows()).scores(stacked(Rows()), pictures(LANES, BATCH)).shape == (LANES, BATCH, 12)


def test_an_empty_batch_and_hooks_leave_nothing_behind():
    model = CNN(SHAPE, 3, width=4)
    variables = stacked(model)
    gradients = {name: torch.zeros(LANES, 0, *value.shape[1:]) for name, value in variables.items()}
    assert map_of(model).each(gradients, (pictures(LANES, 0), torch.zeros(LANES, 0)), Step(variables, [], {})) == (
        gradients
    )
    map_of(model).scores(variables, pictures(LANES, BATCH))
    assert not model.head._forward_pre_hooks


def test_it_does_not_run_before_it_knows_the_model():
    with pytest.raises(RuntimeError, match="for_model"):
        Soteria(share=0.1).example_rule(4.0)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, "a", True])
def test_bad_shares_are_refused(share: object):
    with pytest.raises(InputError, match=r"^defense\.share is "):
        Soteria(share=share)
