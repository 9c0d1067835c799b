"""How far a guess's update is from the observed one, for one lane, and what else a guess is to please.

A lane's fixed inputs are one flat tree, its context: `observed/...`, the gradient to meet, and `square`, its own square
as weighed; `sent/...`, the model, where lanes have different ones; `weight/...`, how much a variable counts; `labels`;
and what a regulariser wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Updates
from attacks.reconstruction.parametrisation import Parametrisation
from attacks.reconstruction.regularisers import Guess, Regulariser
from attacks.reconstruction.simulation import Moments, Simulation
from fl_core.errors import check_choice
from fl_core.lanes import Batch
from fl_core.optimizers import Tree

Measure = Literal["cosine", "squared"]
Weighting = Literal["none", "rising", "snr"]
MEASURES: tuple[Measure, ...] = ("cosine", "squared")
WEIGHTINGS: tuple[Weighting, ...] = ("none", "rising", "snr")


def part(context: Tree, of: str) -> Tree:
    """The entries of `context` under `of`/, without that."""
    return {name[len(of) + 1 :]: value for name, value in context.items() if name.startswith(f"{of}/")}


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How two updates are compared.

    - `cosine`: 1 − their cosine (Geiping et al. 2020, eq. 4). An update's length says nothing then.
    - `squared`: the squared distance over the observed update's square (Zhu et al. 2019 have it without the division).

    `weighting` weighs the variables: alike; `rising` linearly from the first to the last, which holds on to the layers
    of the strongest gradients (the layers' weights of Geng et al. 2021 rise so); or by `snr`, the share of a variable's
    observed square that is not expected to be the noise that the attacker knows of, Wiener's weight; the whole distance
    then counts by that share of the whole update, at least a hundredth, so that regularisers weigh more the more noise
    there is. With `clips` the guess is clipped as the defence clips, where the attacker knows the norm; with `support`
    entries that were observed as zero are left out, as a pruned or a rarely sent one says nothing.
    """

    measure: Measure = "cosine"
    weighting: Weighting = "none"
    clips: bool = False
    support: bool = False

    def __post_init__(self) -> None:
        check_choice("attack.reconstruction.distance.measure", self.measure, MEASURES)
        check_choice("attack.reconstruction.distance.weighting", self.weighting, WEIGHTINGS)

    def context(self, observed: Tree, knowledge: Knowledge) -> Tree:
        """What the comparison needs of the observed gradients [victims, ...]: them, their square, and weights."""
        found = {f"observed/{name}": value for name, value in observed.items()}
        weights = self._of_variables(observed, knowledge)
        for name, value in observed.items():
            axes = [1] * (value.dim() - 1)
            if self.support:
                heard = (value != 0).to(value)
                found[f"weight/{name}"] = heard if weights is None else heard * weights[name].view(-1, *axes)
            elif weights is not None:
                found[f"weight/{name}"] = weights[name]
        products = [_weighed(value, name, found) * value for name, value in observed.items()]
        found["square"] = torch.stack([value.flatten(1).sum(1) for value in products]).sum(0)
        if self.weighting == "snr":
            found["trust"] = self._signal(observed, knowledge).clamp(min=0.01)
        return found

    def _of_variables(self, observed: Tree, knowledge: Knowledge) -> Tree | None:
        """The weight [victims] of each variable; None where all count alike."""
        if self.weighting == "none":
            return None
        if self.weighting == "rising":
            places = enumerate(observed.items(), start=1)
            return {name: value.new_full((len(value),), place / len(observed)) for place, (name, value) in places}
        weights = {name: self._signal({name: value}, knowledge) for name, value in observed.items()}
        lost = torch.stack(list(weights.values())).amax(0) == 0  # where all is noise, all of it is compared
        return {name: torch.where(lost, 1.0, value) for name, value in weights.items()}

    @staticmethod
    def _signal(observed: Tree, knowledge: Knowledge) -> Tensor:
        """The share [victims] of the square of `observed` gradients that is not expected to be noise."""
        unit = 1.0 if knowledge.lr is None else knowledge.lr
        square = torch.stack([value.flatten(1).square().sum(1) for value in observed.values()]).sum(0)
        noise = (knowledge.noise / unit) ** 2 * sum(value[0].numel() for value in observed.values())
        return (1 - noise / square.clamp(min=1e-30)).clamp(0, 1)

    def __call__(self, guess: Tree, context: Tree, clip: float | None) -> Tensor:
        """The distance [] of one lane's guessed gradient; `clip` is the norm in the gradient's unit, None for none."""
        observed, weights, trust = part(context, "observed"), part(context, "weight"), context.get("trust", 1.0)
        guess = {name: guess[name] for name in observed}
        if self.clips and clip is not None:
            length = torch.stack([value.square().sum() for value in guess.values()]).sum().clamp(min=1e-30).sqrt()
            factor = (clip / length).clamp(max=1.0)
            guess = {name: value * factor for name, value in guess.items()}
        theirs = context["square"]
        if self.measure == "squared":
            apart = torch.stack([_square(guess[name] - observed[name], weights.get(name)) for name in observed])
            return trust * apart.sum() / theirs.clamp(min=1e-30)
        weighed = {name: observed[name] * weights[name] if name in weights else observed[name] for name in observed}
        along = torch.stack([(guess[name] * weighed[name]).sum() for name in observed]).sum()
        own = torch.stack([_square(guess[name], weights.get(name)) for name in observed]).sum()
        lengths = own.clamp(min=1e-30).sqrt() * theirs.clamp(min=1e-30).sqrt()  # a square each, lest both be lost
        return trust * (1 - along / lengths)


def _weighed(observed: Tensor, name: str, context: Tree) -> Tensor:
    """A variable's observed gradients [victims, ...] times its weight [victims] or [victims, ...], if it has one."""
    weight = context.get(f"weight/{name}")
    return observed if weight is None else observed * weight.view(*weight.shape, *[1] * (observed.dim() - weight.dim()))


def _square(value: Tensor, weight: Tensor | None) -> Tensor:
    return (value.square() if weight is None else value.square() * weight).sum()


class Objective:
    """distance(update of the guess, observed update) + Σ weight · regulariser, for one lane [1].

    `shared` is the model [...] where all lanes have the same one: what is not stacked is not computed with in stacks,
    which a round's victims and a picture's restarts make common. Without a `distance` the regularisers alone count: the
    prior that never sees the update.
    """

    def __init__(
        self,
        simulation: Simulation,
        distance: Distance | None,
        regularisers: Sequence[Regulariser],
        parametrisation: Parametrisation,
        *,
        shared: Tree | None,
        clip: float | None = None,
    ) -> None:
        self.simulation, self.distance, self.regularisers = simulation, distance, tuple(regularisers)
        self.parametrisation, self.shared, self.clip = parametrisation, shared, clip

    def __call__(self, variables: Tree, context: Tree) -> Tensor:
        pixels = self.parametrisation.pixels(variables, context)
        labels = variables["labels"].softmax(-1) if "labels" in variables else context["labels"]
        moments: Moments = {}
        total = pixels.new_zeros(())
        if self.distance is not None:
            model = part(context, "sent") if self.shared is None else self.shared
            guess, moments = self.simulation(model, pixels, labels)
            total = self.distance(guess, context, self.clip)
        told = Guess(pixels=pixels, moments=moments, epochs=self.simulation.epochs)
        for regulariser in self.regularisers:
            total = total + regulariser.weight * regulariser(told, context)
        return total.unsqueeze(0)

    @property
    def settings(self) -> str:
        """All that it depends on besides the context, for a checkpoint to be told from another descent's."""
        told = self.simulation
        model = [float(value.double().sum()) for value in (self.shared or {}).values()]
        training = (told.steps, told.epochs, told.lr, told.own_pictures)
        return f"{self.distance} {self.regularisers} {self.parametrisation} {self.clip} {training} {model}"

    @property
    def gradients(self) -> int:
        """How many gradients of a victim's pictures one evaluation takes."""
        return self.simulation.gradients if self.distance is not None else 0


class Same:
    """A feed that serves the same contexts [lanes, ...] at every step."""

    def __init__(self, context: Tree, steps: int) -> None:
        self.steps, self._context = steps, context
        first = next(iter(context.values()))
        self._mask = torch.ones(len(first), 1, device=first.device)

    def stacked(self, step: int) -> Batch:
        """The contexts of all lanes [lanes, ...], the same at any `step`."""
        del step
        return Batch((self._context,), self._mask)

    def one(self, step: int, lane: int) -> Batch:
        """The context of one lane [1, ...], the same at any `step`."""
        del step
        only = slice(lane, lane + 1)
        return Batch(({name: value[only] for name, value in self._context.items()},), self._mask[only])


def shared_model(updates: Updates, names: Sequence[str]) -> Tree | None:
    """The model [...] that all victims were sent; None where they had different ones."""
    first = {name: updates.sent[name][0] for name in names}
    alike = all(torch.equal(updates.sent[name], value.expand_as(updates.sent[name])) for name, value in first.items())
    return first if alike else None
