"""R-GAP: one picture from its gradient, layer by layer backwards, by linear equations (Zhu & Blaschko 2021).

At the logits the gradient of the cross-entropy is softmax minus one-hot: the output bias's gradient, or else what the
weights' gradient, their product with the last layer's input, leaves open, a factor, by the consistency of the two. From
the gradient at a layer's output and the weights' gradient follows the layer's input, where needed with the help of the
output's own value; from these the gradient at the output of the layer before; and so on down to the pixels.

An update is rounded, and layers multiply that error. So each quantity has a standard deviation with it, carried along
to first order as though errors were independent, and equations are weighed by theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates, check_fits
from attacks.reconstruction.chain import Chain, Link, chain_of
from attacks.reconstruction.constraints import WHO, gradient_matrix, rank_of, taps, weight_matrix
from attacks.reconstruction.verification import check_one_step, residual, verified
from fl_core.errors import InputError
from fl_core.optimizers import Tree
from fl_core.views import Server

# Equations are weighed by their error, but no more than this times as much as their size: a double has no more digits
# to tell them from the prior, whose weight is 1.
_FINEST = 1e-12
# Where gradient constraints leave less than this share of what was unknown, a convolution's weight constraints add
# nothing worth a system over all channels.
_ALONE = 1e-3
# An entry is told by the equations where they leave less than this share of what was unknown of it.
_TOLD = 0.1


@dataclass(frozen=True)
class Estimate:
    """A tensor and the standard deviation of each of its entries."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True, kw_only=True)
class RecursiveGradientAttack:
    """Recover one picture from an update of one step on it, in closed form.

    `try_deficient` attacks a model, too, that the rank analysis says cannot be recovered; the answer is then the
    picture nearest to grey among those that satisfy the equations. The inputs of a convolution whose gradient
    constraints do not tell them are solved for together, in time that grows with the cube of their number; where that
    is above `largest`, by gradient constraints alone, so that the answer is not exact.
    """

    try_deficient: bool = False
    largest: int = 6144

    name: ClassVar[str] = WHO
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def run(self, updates: Updates, knowledge: Knowledge, **options: Any) -> Reconstruction:
        """One restart a victim. Raises InputError for other models, several pictures or several steps."""
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        if knowledge.examples != 1:
            raise InputError(
                f"{self.name} recovers one picture from an update, and {knowledge.examples} are behind this one; use "
                "batch_size=1"
            )
        chain = chain_of(knowledge.model, knowledge.shape, self.name)
        if not isinstance(chain.links[-1].layer, nn.Linear):
            raise InputError(f"{self.name} needs a model whose last layer is fully connected")
        names = [name for link in chain.links for name in (link.weight, link.bias) if name]
        missing = [name for name in names if name not in updates.moved]
        if missing:
            raise InputError(f"{self.name} needs every layer's update; {missing[0]} is not in it")
        ranks = rank_of(chain)
        if not ranks.recoverable and not self.try_deficient:
            raise InputError(
                f"{self.name} cannot recover this model: {ranks.verdict}; set try_deficient=true for a best guess"
            )
        images, labels, tried, told = [], [], [], []
        for victim in range(len(updates)):
            one = updates.select(slice(victim, victim + 1))
            answers = _answers(chain, one, knowledge, victim, self.largest)
            misses = [residual(one, knowledge, each.picture[None, None], each.label.view(1, 1)) for each in answers]
            best = answers[int(torch.stack(misses).argmin())]
            images.append(best.picture)
            labels.append(best.label)
            told.append(best.told)
            tried.append(len(answers))
        dtype = next(iter(updates.moved.values())).dtype
        found = verified(
            updates, knowledge, torch.stack(images)[:, None].to(dtype), torch.stack(labels)[:, None], self.name,
            torch.tensor(tried),
        )  # fmt: skip
        # Where equations are missing, many pictures explain the update; one of them is not the picture.
        return replace(found, exact=found.exact & torch.tensor(told))


@dataclass(frozen=True)
class _Answer:
    """A picture [channels, height, width] in [0, 1], its label, and whether equations told every layer's input."""

    picture: Tensor
    label: Tensor
    told: bool


def _answers(chain: Chain, one: Updates, knowledge: Knowledge, victim: int, largest: int) -> list[_Answer]:
    """What may be behind one update; which it is, the update itself decides."""
    lr = knowledge.lr or 1.0
    sent = {name: value[0].double().cpu() for name, value in one.sent.items()}
    gradient = {name: _gradient(one, name, lr, knowledge.noise) for name in one.moved}
    scaled = knowledge.lr is not None and knowledge.clip_norm is None
    told = None if knowledge.labels is None else knowledge.labels[victim, 0].cpu()
    found = []
    for at_output, entered in _heads(chain.links[-1], sent, gradient, scaled, told):
        guess = at_output.value.argmin() if told is None else told
        determined = True
        for place in range(len(chain.links) - 1, 0, -1):
            at_output, output = _backwards(chain.links[place - 1], chain.links[place], sent, at_output, entered)
            prior = _prior(chain, place - 1)
            entered = _input(chain.links[place - 1], sent, gradient, at_output, output, prior, largest)
            determined &= bool((entered.error <= _TOLD * prior.error).all())
        picture = chain.pixels(entered.value.flatten()).clamp(0, 1).view(knowledge.shape)
        picture = torch.where(torch.isfinite(picture).all(), picture, torch.nan)
        found.append(_Answer(picture, guess, determined))
    return found


def _gradient(one: Updates, name: str, lr: float, noise: float) -> Estimate:
    """With what rounding leaves of a difference of two models, and of a gradient, and with the defence's noise."""
    moved, sent = one.moved[name][0].cpu(), one.sent[name][0].double().cpu()
    eps = torch.finfo(moved.dtype).eps
    value = -moved.double() / lr
    rounding = eps * (0.3 * sent.abs() / lr + value.abs() + value.square().mean().sqrt())
    return Estimate(value, (rounding.square() + (noise / lr) ** 2).sqrt())


# The last layer


def _heads(
    link: Link, sent: Tree, gradient: dict[str, Estimate], scaled: bool, told: Tensor | None
) -> list[tuple[Estimate, Estimate]]:
    """The gradient at the logits and the last layer's input, all that are possible."""
    weight = gradient[link.weight]
    if link.bias in gradient:
        at_logits = gradient[link.bias]
        return [(at_logits, _outer_input(weight, at_logits))]
    # The gradient is one outer product. Its left factor has one negative entry, the label's, which tells its sign
    # (of two classes, either may be).
    left, values, right = torch.linalg.svd(weight.value, full_matrices=False)
    at, units = left[:, 0], right[0] * values[0]
    signs = [1.0, -1.0] if len(at) == 2 else [1.0 if (at < 0).sum() <= 1 else -1.0]
    found = []
    for sign in signs:
        label = int((sign * at).argmin()) if told is None else int(told)
        for factor in _factors(sent, link, sign * at, sign * units, label, scaled):
            value = sign * at / factor
            at_logits = Estimate(value, weight.error.norm() / values[0] * value.abs().mean().expand_as(value))
            found.append((at_logits, _outer_input(weight, at_logits)))
    return found


def _factors(sent: Tree, link: Link, at: Tensor, units: Tensor, label: int, scaled: bool) -> list[float]:
    """The factors t for which the logits of an input t·`units` have about the gradient `at`/t; `at` has length 1.

    One equation a class for the one unknown, where Zhu & Blaschko's binary loss has a single one; it may have two
    solutions of two classes. Without the update's scale, only directions count. At least one is returned.
    """
    bias = sent[link.bias] if link.bias else 0.0
    logits = sent[link.weight] @ units
    target = torch.nn.functional.one_hot(torch.tensor(label), len(at)).double()

    def misses(logs: Tensor) -> Tensor:
        chances = torch.softmax(logs.exp()[:, None] * logits + bias, 1) - target
        lengths = chances.norm(dim=1, keepdim=True).clamp(min=1e-300)
        aims = at / logs.exp()[:, None] if scaled else at * lengths
        missed: Tensor = ((chances - aims) / lengths).norm(dim=1)
        return missed

    grid = torch.linspace(-25, 25, 5001, dtype=torch.float64)
    missed = misses(grid)
    lowest = 1 + ((missed[1:-1] <= missed[:-2]) & (missed[1:-1] < missed[2:])).nonzero()[:, 0]
    lowest = lowest[missed[lowest].argsort()[:3]] if len(lowest) else missed.argmin()[None]
    solved = torch.tensor(
        [_polished(float(log), logits, bias, at, target, scaled) for log in grid[lowest]], dtype=torch.float64
    )
    missed = misses(solved)
    return [float(one) for one in solved[missed <= 1e3 * missed.min() + 1e-12].exp()]


def _polished(log: float, logits: Tensor, bias: Tensor | float, at: Tensor, target: Tensor, scaled: bool) -> float:
    """The factor's logarithm near `log`, by Gauss and Newton's method, to the last digits of a double."""
    for _ in range(20):
        factor = math.exp(log)
        chances = torch.softmax(factor * logits + bias, 0)
        turn = chances * factor * (logits - chances @ logits)  # their derivative
        if scaled:
            miss, slope = chances - target - at / factor, turn + at / factor
        else:  # what is not along `at`
            miss, slope = (value - at * (at @ value) for value in (chances - target, turn))
        log -= max(-0.1, min(0.1, float(miss @ slope / (slope @ slope).clamp(min=1e-300))))
    return log


# One layer


def _outer_input(weight: Estimate, at_output: Estimate) -> Estimate:
    """The input x [inputs] of a fully connected layer, whose gradient is K·xᵀ, by least squares over the units."""
    at, whole = at_output.value, at_output.value.square().sum()
    value = weight.value.T @ at / whole
    spread = weight.error.square() + value.square() * at_output.error.square()[:, None]
    return Estimate(value, (spread.T @ at.square()).sqrt() / whole)


def _backwards(
    before: Link, link: Link, sent: Tree, at_output: Estimate, entered: Estimate
) -> tuple[Estimate, Estimate]:
    """From K at `link`'s output and what entered it: K at the output of the layer before, and that output itself.

    An output that a ReLU hid has an infinite error.
    """
    activation = before.activation
    value, error = entered.value.view(before.outputs), entered.error.view(before.outputs)
    if activation.kind == "relu":
        value = torch.where(value > 3 * error, value, 0.0)
    through = _transposed(link, sent[link.weight], at_output.value).view(before.outputs)
    spread = _transposed(link, sent[link.weight].square(), at_output.error.square()).view(before.outputs)
    slope = activation.derivative(value)
    if activation.kinked:
        bend = (1 - activation.slope) / 2 * (entered.value.view(before.outputs).abs() < 3 * error)
    else:
        bend = {"sigmoid": (1 - 2 * value).abs(), "tanh": 2 * value.abs()}.get(activation.kind, 0.0 * value) * error
    at = Estimate(through * slope, (spread * slope.square() + (through * bend).square()).sqrt())
    return at, Estimate(activation.inverse(value), torch.where(slope > 0, error / slope, torch.inf))


def _transposed(link: Link, weight: Tensor, at_output: Tensor) -> Tensor:
    """The transposed layer on what is at its output."""
    layer = link.layer
    if isinstance(layer, nn.Linear):
        return weight.T @ at_output.flatten()
    assert not isinstance(layer.padding, str)
    shape, whole = (1, *link.inputs), at_output.view(1, *link.outputs)
    found: Tensor = conv2d_input(shape, weight, whole, layer.stride, layer.padding, layer.dilation)
    return found[0]


def _input(
    link: Link,
    sent: Tree,
    gradient: dict[str, Estimate],
    at_output: Estimate,
    output: Estimate,
    prior: Estimate,
    largest: int,
) -> Estimate:
    """What entered a layer [entries]: by its gradient constraints, and a convolution's by its weight constraints, too.

    Rows are divided by their error, so that least squares weighs them; the prior is a row an entry, of one deviation.
    """
    weight = gradient[link.weight]
    if isinstance(link.layer, nn.Linear):
        own = gradient.get(link.bias or "", at_output)  # as measured, without inherited error
        flat = Estimate(own.value.flatten(), own.error.flatten())
        return _outer_input(weight, flat)
    channels, height, width = link.inputs
    entries, read = height * width, taps(link)
    # Gradient constraints: all input channels share a matrix, and a row's error is taken as its largest.
    at, error = at_output.value.flatten(1), at_output.error.flatten(1)
    size = prior.value.square().mean() + prior.error.square().mean()
    inherited = gradient_matrix(read, entries, error.square()).sum(1) * size
    own_error = weight.error.flatten(2).square().amax(1).flatten()
    deviation = (own_error + inherited).sqrt().clamp(min=_FINEST * weight.value.square().mean().sqrt().item())
    matrix = gradient_matrix(read, entries, at) / deviation[:, None]
    seen = weight.value.flatten(2).transpose(1, 2).flatten(0, 1) / deviation[:, None]  # [outputs · taps, channels]
    # Weight constraints, of the outputs that are neither hidden by a ReLU nor saturated.
    known = torch.isfinite(output.error.flatten())
    at_rows = (output.value.flatten(1) - (sent[link.bias][:, None] if link.bias else 0.0)).flatten()[known]
    floor = _FINEST * at_rows.square().mean().sqrt().item() if len(at_rows) else 0.0
    deviations = output.error.flatten()[known].clamp(min=floor)
    spread = prior.error.mean()
    apart = _Factored(torch.cat([matrix, torch.eye(entries, dtype=matrix.dtype) / spread]))
    error = apart.deviations()[None].expand(channels, entries)
    whole = None
    if (error > _ALONE * spread).any() and channels * entries <= largest:
        rows = weight_matrix(read, entries, sent[link.weight].flatten(2))[known] / deviations[:, None]
        whole = _Factored(torch.cat([torch.block_diag(*[apart.triangle] * channels), rows]))
        error = whole.deviations()
    # A prior pulls towards its middle by the square of the error; so it is moved to what was found, and once more.
    value = prior.value.view(channels, entries)
    for _ in range(3):
        side = apart.side(torch.cat([seen - matrix @ value.T, torch.zeros(entries, channels, dtype=seen.dtype)]))
        if whole is None:
            value = value + apart.solved(side).T
        else:
            missed = at_rows / deviations - rows @ value.flatten()
            side = whole.side(torch.cat([side.T.flatten(), missed])[:, None])
            value = value + whole.solved(side).view(channels, entries)
    return Estimate(value.flatten(), error.flatten())


class _Factored:
    """The QR factors of a system of equations of unit error, no fewer than the unknowns."""

    def __init__(self, system: Tensor) -> None:
        self.unknowns = system.shape[1]
        self.reflections, self.factors = torch.geqrf(system)
        self.triangle = self.reflections[: self.unknowns].triu()

    def side(self, answers: Tensor) -> Tensor:
        """The right-hand sides [unknowns, ...] of the triangular system, of those [equations, ...] of the whole."""
        turned: Tensor = torch.ormqr(self.reflections, self.factors, answers, transpose=True)
        return turned[: self.unknowns]

    def solved(self, side: Tensor) -> Tensor:
        """The least-squares solutions [unknowns, ...] for what `side` returned."""
        solution: Tensor = torch.linalg.solve_triangular(self.triangle, side, upper=True)
        return solution

    def deviations(self) -> Tensor:
        """The standard deviation [unknowns] of each entry of a solution."""
        inverse = self.solved(torch.eye(self.unknowns, dtype=self.triangle.dtype))
        return inverse.square().sum(1).sqrt()


def _prior(chain: Chain, place: int) -> Estimate:
    """What is known of the input of a link [entries] before: pixels are in [0, 1], and activations have a range."""
    if place == 0:
        return Estimate(chain.scale / 2 + chain.shift, chain.scale.abs())
    link = chain.links[place]
    middle = 0.5 if chain.links[place - 1].activation.kind == "sigmoid" else 0.0
    flat = torch.ones(link.inputs.numel(), dtype=torch.float64)
    return Estimate(middle * flat, flat)
