"""Soteria: the features that give most of a picture away are missing from one layer's gradient.

Sun et al. 2021 ("Soteria: Provable Defense against Privacy Leakage in Federated Learning from Representation
Perspective"), with r the input of the defended fully connected layer and x the picture it came from:
    choose the features j with the largest ‖r_j (∇_x r_j)⁻¹‖, taken as |r_j| / ‖∂r_j/∂x‖₂
    zero them in the r of the layer's weight gradient  (∂ℓ/∂b) rᵀ,  and nowhere else
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.heuristics import whole_part
from defenses.rules import After, ExampleMap, MeanOfExamples
from defenses.statements import NoGuarantee
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.plan import Plan
from fl_core.rules import Gradients, Input, Outer, Step

_FEATURES_AT_ONCE = 8  # each takes the memory of a backward pass


@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Leave the most telling `share` of a layer's input features out of its weight gradient, for each example.

    `layer` names the defended linear layer; left out, it is the model's last one, whose input is the learned
    representation. Of F features ⌈share·F⌉ go. All other gradients, the layer's bias's too, are as in plain training.

    It is costly: each step takes per-example gradients, and a forward pass and F backward passes to the pixels more.
    """

    share: float
    layer: str | None = None
    model: nn.Module | None = field(default=None, repr=False)

    name = "soteria"

    def __post_init__(self) -> None:
        check_number("defense.share", self.share, above=0, maximum=1)

    def for_model(self, model: nn.Module) -> Soteria:
        return replace(self, model=model, layer=defended_layer(model, self.layer))

    def example_maps(self) -> Sequence[ExampleMap]:
        if self.model is None or self.layer is None:
            raise RuntimeError("Soteria is told the model by for_model(model) before it runs")
        return (WithoutTellingFeatures(self.model, self.layer, self.share),)

    def example_rule(self, expected_batch: float) -> After:
        return After(self.example_maps(), MeanOfExamples())

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="it is analysed for one attack's error on one layer; the other gradients are sent as they are",
            unit=unit,
            view=view,
        )


def defended_layer(model: nn.Module, asked: str | None) -> str:
    """The name of the linear layer that is `asked` for, or of the last one in the order of `model.named_modules()`.

    Raises InputError where there is none, or where nothing is learned before the last one.
    """
    kind = type(model).__name__
    linear: list[str] = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise InputError(f"defense=soteria prunes a linear layer's gradient, and {kind} has none; choose another model")
    if asked is not None:
        check_choice("defense.layer", asked, linear)
        return asked
    own = {id(value) for value in model.get_submodule(linear[-1]).parameters()}
    if all(id(value) in own for value in model.parameters()):
        raise InputError(
            f"defense=soteria protects a learned representation, and {kind} has one layer alone, whose input is the "
            "picture itself; choose a deeper model, or name the layer in defense.layer"
        )
    return linear[-1]


@dataclass(frozen=True)
class WithoutTellingFeatures:
    """Zeroes, for each example, the columns of a linear layer's weight gradient that belong to its telling features."""

    model: nn.Module
    layer: str
    share: float

    def each(self, gradients: Gradients, inputs: tuple[Input, ...], step: Step) -> Gradients:
        """The gradients [lanes, batch, ...]; `inputs` are (pictures [lanes, batch, ...], labels)."""
        pictures = inputs[0]
        assert isinstance(pictures, Tensor)
        if not pictures.shape[1]:
            return gradients
        scores = self.scores(step.variables, pictures)
        count = -whole_part(-self.share * scores.shape[-1])
        told = scores.argsort(dim=-1, descending=True, stable=True)[..., : max(1, count)]
        kept = torch.ones_like(scores).scatter(-1, told, 0.0)
        whole = gradients[self._weight]
        pruned = Outer(whole.slope, whole.seen * kept) if isinstance(whole, Outer) else whole * kept.unsqueeze(-2)
        return {**gradients, self._weight: pruned}

    def scores(self, variables: Tree, pictures: Tensor) -> Tensor:
        """|r_j| / ‖∂r_j/∂x‖₂ [lanes, batch, features] at `variables` [lanes, ...]; 0 where r_j itself is 0.

        An example's features depend on its own pixels alone, so that one backward pass serves the whole batch, and
        some features' passes go side by side.
        """
        with torch.enable_grad():
            pixels = pictures.detach().requires_grad_()
            features = vmap(vmap(self._features, in_dims=(None, 0)))(variables, pixels)
            totals = features.sum((0, 1))
        slopes = [
            torch.autograd.grad(totals, pixels, some, retain_graph=True, is_grads_batched=True)[0]
            .flatten(3)
            .norm(dim=-1)
            for some in torch.eye(len(totals), dtype=totals.dtype, device=totals.device).split(_FEATURES_AT_ONCE)
        ]
        sizes = features.detach().abs()
        return torch.where(sizes > 0, sizes / torch.cat(slopes).movedim(0, -1), 0.0)

    def _features(self, variables: Tree, picture: Tensor) -> Tensor:
        """The defended layer's input [features] for one picture and one lane's variables."""
        seen: list[Tensor] = []
        layer = self.model.get_submodule(self.layer)
        watch = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            functional_call(self.model, variables, (picture.unsqueeze(0),))
        finally:
            watch.remove()
        if len(seen) != 1 or seen[0].shape != (1, layer.in_features):
            raise InputError(
                f"defense.layer={self.layer} does not take one row of features a picture, once; name a layer that does"
            )
        return seen[0][0]

    @property
    def _weight(self) -> str:
        """The name of the layer's weight among the variables; a weight that layers share has the first one's."""
        weight = self.model.get_submodule(self.layer).weight
        return next(name for name, value in self.model.named_parameters() if value is weight)
