"""Inverting Gradients: find the picture whose gradient points where the observed update points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from attacks.reconstruction.labels import infer_single_label
from fl_core.errors import InputError, check_number
from fl_core.lanes import Backend, Batch, descend
from fl_core.models import cross_entropy
from fl_core.optimizers import SignedAdam, Tree
from fl_core.seeds import generator
from fl_core.views import Server, require_view


@dataclass(frozen=True, kw_only=True)
class ReconstructionKnowledge:
    """What the attacker was told besides its observation: the model's code, the picture's shape and the classes.

    It knows that the update is one step on one example. It is not told the label, nor any data.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What was recovered for each victim.

    `images` [victims, restarts, channels, height, width] in [0, 1]; `objective` [victims, restarts] is the attacker's
    own; `chosen` [victims] is the restart that it picks by that objective; `labels` [victims] are inferred.
    """

    images: Tensor
    objective: Tensor
    chosen: Tensor
    labels: Tensor

    def selected(self) -> Tensor:
        """The attacker's answer [victims, channels, height, width]."""
        return self.images[torch.arange(len(self.images)), self.chosen]


@dataclass(frozen=True, kw_only=True)
class InvertingGradients:
    """Cosine matching with total variation, Adam on the signed gradient, several restarts (Geiping et al. 2020, eq. 4).

    Every client of the observed round is a victim, and every victim's restarts are lanes of the one training loop.
    The restart is picked by the attacker's objective, never by likeness to the truth.
    """

    restarts: int = 4
    iterations: int = 300
    lr: float = 0.1
    total_variation: float = 1e-2

    name = "inverting gradients"
    needs = Server
    letter = "B"
    """An informed eavesdropper (Carletti et al. 2025): it knows the updates, the model and the task."""

    def __post_init__(self) -> None:
        check_number("attack.reconstruction.restarts", self.restarts, minimum=1, integer=True)
        check_number("attack.reconstruction.iterations", self.iterations, minimum=1, integer=True)
        check_number("attack.reconstruction.lr", self.lr, above=0)
        check_number("attack.reconstruction.total_variation", self.total_variation, minimum=0)

    def run(
        self,
        observation: Server,
        knowledge: ReconstructionKnowledge,
        *,
        round: int = 0,
        run: int = 0,
        victims: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
        on_step: Callable[[int], object] | None = None,
    ) -> Reconstruction:
        """Attack each client's update of `round`; victims are ordered replica by replica, client by client.

        `run` and the `victims`' numbers seed the restarts. Raises InputError for a view without updates, an update
        that does not fit the model, a zero or non-finite one.
        """
        require_view(self.name, observation, Server)
        if round not in observation.updates:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.updates)}")
        updates, sent = observation.updates[round], observation.models[round]
        updates, sent = _of_the_model(updates), _of_the_model(sent)
        _check_fits(updates, sent, knowledge.model)
        cohort = next(iter(updates.values())).shape[1]
        # One step of gradient descent: the update is minus the gradient, up to a positive factor.
        names = [name for name, _ in knowledge.model.named_parameters() if name in updates]
        gradient = {name: -updates[name].flatten(0, 1).to(device) for name in names}
        model = {name: sent[name].repeat_interleave(cohort, 0).to(device) for name in names}
        labels = infer_single_label(gradient, knowledge.classes)
        count = len(labels)
        numbers = range(count) if victims is None else victims
        start = torch.stack(
            [
                torch.rand(1, *knowledge.shape, generator=generator(run, "restart", victim, restart))
                for victim in numbers
                for restart in range(self.restarts)
            ]
        )
        images, scores = fit(
            Objective(knowledge.model, self.total_variation),
            (model, gradient, labels.unsqueeze(1)),
            start.unflatten(0, (count, self.restarts)).to(device),
            SignedAdam(lr=self.lr, steps=self.iterations),
            backend=backend,
            on_step=on_step,
        )
        return Reconstruction(
            images=images[:, :, 0].cpu(), objective=scores.cpu(), chosen=scores.argmin(1).cpu(), labels=labels.cpu()
        )


def fit(
    objective: Objective,
    inputs: tuple[Tree, Tree, Tensor],
    start: Tensor,
    optimizer: SignedAdam,
    *,
    backend: Backend = "auto",
    on_step: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Pictures that meet the objective, from `start` [targets, restarts, pictures, channels, height, width].

    `inputs` are each target's model, observed gradient and labels [targets, ...]; each restart is a lane. Returns the
    pictures, shaped as `start`, and the objective of each restart [targets, restarts].
    """
    targets, restarts = start.shape[:2]
    model, gradient, labels = inputs
    models, gradients = (
        {name: value.repeat_interleave(restarts, 0) for name, value in tree.items()} for tree in (model, gradient)
    )
    lanes, flat = (models, gradients, labels.repeat_interleave(restarts, 0)), start.flatten(0, 1)
    feed = Same(lanes, len(flat), optimizer.steps, flat)
    found = descend({"pixels": flat}, objective, feed, optimizer, backend=backend, on_step=on_step)["pixels"]
    scores = torch.func.vmap(objective)({"pixels": found}, *lanes)[:, 0].detach()
    return found.unflatten(0, (targets, restarts)), scores.unflatten(0, (targets, restarts))


class Objective:
    """1 − cosine(gradient of the guess, observed gradient) + weight · total variation, for one lane [1]."""

    def __init__(self, model: nn.Module, total_variation: float) -> None:
        self.model, self.weight = model, total_variation

    def __call__(self, variables: Tree, model: Tree, observed: Tree, label: Tensor) -> Tensor:
        pixels = variables["pixels"]

        def task(parameters: Tree) -> Tensor:
            return cross_entropy(functional_call(self.model, parameters, (pixels,)), label).mean()

        guess = grad(task)(model)
        along = torch.stack([(guess[name] * observed[name]).sum() for name in guess]).sum()
        own = torch.stack([value.square().sum() for value in guess.values()]).sum()
        theirs = torch.stack([value.square().sum() for value in observed.values()]).sum()
        cosine = along / (own * theirs + 1e-20).sqrt()
        across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean()
        down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean()
        return (1 - cosine + self.weight * (across + down)).unsqueeze(0)


class Same:
    """A feed that serves the same inputs at every step."""

    def __init__(self, inputs: tuple[Tree, Tree, Tensor], lanes: int, steps: int, like: Tensor) -> None:
        self.steps = steps
        self._batch = Batch(inputs, like.new_ones(lanes, 1))

    def stacked(self, step: int) -> Batch:
        del step
        return self._batch

    def one(self, step: int, lane: int) -> Batch:
        del step
        only = slice(lane, lane + 1)
        model, observed, label = self._batch.inputs
        assert isinstance(model, dict)
        assert isinstance(observed, dict)
        assert isinstance(label, Tensor)
        cut = tuple({name: value[only] for name, value in tree.items()} for tree in (model, observed))
        return Batch((*cut, label[only]), self._batch.mask[only])


def _of_the_model(tree: Tree) -> Tree:
    """Without what an algorithm sends beside the model (SCAFFOLD's controls), whose names have a `/`."""
    return {name: value for name, value in tree.items() if "/" not in name}


def _check_fits(updates: Tree, sent: Tree, model: nn.Module) -> None:
    """Names, shapes and values that an attack can work with; a layer that stays with its client need not be there."""
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    expected = {name: shape for name, shape in shapes.items() if name in sent}
    given = {name: tuple(value.shape[2:]) for name, value in updates.items()}
    if expected != given:
        different = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise InputError(
            f"the update does not fit the model: {different[0]} is {given.get(different[0])}, "
            f"not {expected.get(different[0])}"
        )
    flat = torch.cat([value.flatten(2) for value in updates.values()], dim=2)
    if not torch.isfinite(flat).all():
        raise InputError("the update holds NaN or infinite values; nothing can be reconstructed from it")
    if (flat.abs().amax(2) == 0).any():
        raise InputError("an update is all zeros: that client took no step, so there is nothing to reconstruct")
