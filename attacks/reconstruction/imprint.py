"""Layers that a malicious server puts into the model so that a sum over many pictures holds each of them apart.

Such a layer's unit l has the gradients ∂W_l = Σ g·x and ∂b_l = Σ g over the pictures x that fire it. If only one does,
x = ∂W_l/∂b_l. A sum over clients is a sum over more pictures, so that masks hide nothing. Three kinds of layers:

- `dense`, the imprint layer (Fowl et al. 2022, "Robbing the Fed", section 4). All rows of W measure the same number of
  a picture, its brightness say, and unit l fires where that number is above the threshold t_l. Each unit passes the
  loss the same gradient g, so that unit l minus unit l+1 leaves the pictures between t_l and t_{l+1} alone. With k bins
  that are equally likely, a picture is alone among n with the chance (1 − 1/k)^(n−1).
- `sparse`, their answer to federated averaging: each unit is clamped between its own two thresholds, so that a picture
  moves one unit alone. Nothing has to be subtracted, and of an update's length a picture gets a part that does not
  shrink with the number of bins, which is what counts under a clip.
- `traps` (Boenisch et al. 2023, "When the Curious Abandon Honesty"): plain rectified units with random rows, each with
  a threshold that one picture in k passes. A picture is alone in some unit with the chance
  1 − (1 − (1 − 1/k)^(n−1)/k)^k. Their rows look like any new layer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from fl_core.views import MaliciousServer, require_view

Shape = tuple[int, int, int]
Kind = Literal["dense", "sparse", "traps"]
KINDS: tuple[Kind, ...] = ("dense", "sparse", "traps")

WEIGHT, BIAS = "imprint.weight", "imprint.bias"


def alone(kind: Kind, bins: int, pictures: float) -> float:
    """The chance that a picture among `pictures` is alone in a unit, if all of `bins` are equally likely."""
    single = (1 - 1 / bins) ** (pictures - 1)
    return 1 - (1 - single / bins) ** bins if kind == "traps" else float(single)


# What sorts the pictures


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """What the units measure: picture x fires unit l where low_l < row_l · x < high_l.

    `rows` [bins, pixels], `low` and `high` [bins], float64; `spread` is a measure's standard deviation.
    """

    rows: Tensor
    low: Tensor
    high: Tensor
    spread: float

    def __post_init__(self) -> None:
        if not bool((self.high > self.low).all()):
            raise InputError(
                "two bins of the imprint layer begin at the same number: the measure ties too many pictures, or its "
                "quantiles lie outside those of pixels in [0, 1]; use fewer bins or another row"
            )

    @property
    def bins(self) -> int:
        """How many units the layer has."""
        return len(self.low)

    def fires(self, pictures: Tensor) -> Tensor:
        """Which units each picture fires between their thresholds, bool [pictures, bins] for [pictures, ...]."""
        measured = pictures.flatten(1).to(self.rows) @ self.rows.T
        return (measured > self.low) & (measured <= self.high)


def brightness(shape: Shape) -> Tensor:
    """The row [pixels] that measures a picture's mean brightness."""
    size = shape[0] * shape[1] * shape[2]
    return torch.full((size,), 1 / size)


def projection(shape: Shape, run: int, count: int = 1) -> Tensor:
    """Random rows [count, pixels] of about unit length; one row is [pixels].

    They tell pictures of few grey levels apart, whose brightness ties.
    """
    size = shape[0] * shape[1] * shape[2]
    drawn = torch.randn(count, size, generator=generator(run, "imprint rows")) / size**0.5
    one: Tensor = drawn[0]
    return drawn if count > 1 else one


Quantile = Callable[[Tensor], Tensor]
"""Maps chances [...] to values of a measure."""


def empirical(row: Tensor, public: Tensor) -> Quantile:
    """Quantiles of a measure over `public` pictures [pictures, ...]."""
    measured = public.flatten(1).double() @ row.double()
    return lambda chances: torch.quantile(measured, chances.to(measured))


def ruler(row: Tensor, bins: int, quantile: Quantile) -> Ruler:
    """One measure [pixels] for all units, and bins that are equally likely as far as the server knows.

    `quantile` is an `empirical` one of public pictures, or the `icdf` of a `torch.distributions.Normal` or `Laplace`
    with a mean and a scale that it guesses. The outermost bins take in every picture with pixels in [0, 1].
    """
    check_number("bins", bins, minimum=2, integer=True)
    row = row.double()
    inner = quantile(torch.arange(1, bins, dtype=torch.float64) / bins).to(row)
    lowest, highest = row.clamp(max=0).sum(), row.clamp(min=0).sum()
    margin = 1e-3 * (highest - lowest)
    edges = torch.cat([(lowest - margin)[None], inner, (highest + margin)[None]])
    middle = quantile(torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    return Ruler(rows=row.expand(bins, -1), low=edges[:-1], high=edges[1:], spread=float(middle[1] - middle[0]) / 2)


def trap_ruler(rows: Tensor, public: Tensor) -> Ruler:
    """A measure a unit, `rows` [bins, pixels], whose threshold one in as many `public` pictures as bins passes.

    Raises InputError for fewer public pictures than bins.
    """
    if len(public) < len(rows):
        raise InputError(f"{len(rows)} traps need as many public pictures, and there are {len(public)}; use fewer bins")
    rows = rows.double()
    measured = public.flatten(1).double() @ rows.T
    passing = round(len(public) / len(rows))
    top = measured.topk(min(passing + 1, len(public)), dim=0).values
    return Ruler(
        rows=rows,
        low=(top[passing - 1] + top[-1]) / 2,
        high=rows.clamp(min=0).sum(1) + 1,
        spread=float(measured.std(0).mean()),
    )


# The layer


class Imprinted(nn.Module):
    """`inner` with the layer beside it: what the layer's units say is summed up and moved into the logits.

    The sum goes to every second logit with the opposite sign, about one logit for a spread of the measure (or, where
    sparse, for a bin), so that a picture's gradient has about the same length whatever the model makes of it. The rows
    are small and their sum is multiplied by `gain` in return, which makes the layer's gradients longer, and moves its
    weights further for their size. Only the layer's own weight [bins, pixels] and bias [bins] are trained; how its sum
    is passed on is code.
    """

    weighing: Tensor
    passing: Tensor

    def __init__(self, inner: nn.Module, shape: Shape, classes: int, bins: int, kind: Kind, gain: float) -> None:
        super().__init__()
        self.imprint = nn.Linear(shape[0] * shape[1] * shape[2], bins)
        self.inner = inner
        self.kind, self.gain = kind, gain
        signs = 1.0 - 2.0 * (torch.arange(max(classes, bins)) % 2)
        # Sparse: of the units below a picture's own, all saturated, neighbours cancel, and the sum stays in [0, 1].
        each = {"dense": torch.full((bins,), 1 / bins), "sparse": signs[:bins], "traps": torch.ones(bins)}[kind]
        # Buffers outside the state are neither trained nor averaged.
        self.register_buffer("weighing", gain * each, persistent=False)
        self.register_buffer("passing", signs[:classes].clone(), persistent=False)

    def measured(self, pixels: Tensor) -> Tensor:
        """What each unit measures of each picture [batch, bins]."""
        units: Tensor = self.imprint(pixels.flatten(1))
        return units

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        units = self.measured(pixels)
        units = units.clamp(0, 1 / self.gain) if self.kind == "sparse" else units.relu()
        # One number a picture, so that every unit gets the very same gradient, to the bit.
        passed = (units * self.weighing).sum(1, keepdim=True)
        if self.kind != "traps":
            passed = passed - 0.5  # about its mean
        scores: Tensor = self.inner(pixels) + passed * self.passing
        return scores


# The attack


@dataclass(frozen=True, kw_only=True)
class ImprintKnowledge:
    """What the server knows besides its observation: its own ruler, the pictures' shape, and the sum's error.

    `error` is the standard deviation that rounding to a grid and noise leave in a coordinate of the sum.
    """

    ruler: Ruler
    shape: Shape
    error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Imprints:
    """A picture a unit, [replicas, bins, channels, height, width], not cut to [0, 1].

    `occupied` [replicas, bins] says in which units the sum holds anything beyond its error; elsewhere a picture is 0.
    `deviation` is that of a pixel as the sum's error has it, inf where there is no picture. `single` says which of them
    the server takes for one picture: the pixels lie in [0, 1] and fire their unit, but for their own error. Several
    pictures of a unit come out as a mean with weights g, which may pass, too.
    """

    pictures: Tensor
    occupied: Tensor
    deviation: Tensor
    single: Tensor


@dataclass(frozen=True, kw_only=True)
class Imprint:
    """The attack with a layer of `bins` units of a `kind`; the module's own words say which there are.

    After one local step the recovery is exact for a picture that is alone. What more local steps do depends on how far
    the first one moves the layer, rate times `gain`². A little: a sparse layer adds up the pictures of all steps, and
    gives away who is alone over all of them; a dense one blurs, as the thresholds of neighbours part. Very far: the
    units of a dense layer are dead or always on after the first step, which stands in the update as if it were alone.
    """

    bins: int
    kind: Kind = "dense"
    gain: float = 1.0

    name: ClassVar[str] = "imprint layer"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "G"
    """A data-enhanced manipulator (Carletti et al. 2025): it changes the model, and knows the pictures' statistics."""

    def __post_init__(self) -> None:
        check_number("attack.bins", self.bins, minimum=2, integer=True)
        check_choice("attack.kind", self.kind, KINDS)
        check_number("attack.gain", self.gain, above=0)

    def model(self, inner: nn.Module, shape: Shape, classes: int) -> Imprinted:
        """The architecture that the clients are sent."""
        return Imprinted(inner, shape, classes, self.bins, self.kind, self.gain)

    def plant(self, sent: Tree, ruler: Ruler) -> Tree:
        """The parameters that the clients are sent: `sent` [...] with the layer's own replaced."""
        if ruler.bins != self.bins:
            raise InputError(f"the ruler has {ruler.bins} bins and the imprint layer {self.bins}; make them alike")
        width = ruler.high - ruler.low if self.kind == "sparse" else torch.full_like(ruler.low, ruler.spread)
        return sent | {
            WEIGHT: (ruler.rows / (self.gain * width)[:, None]).to(sent[WEIGHT]),
            BIAS: (-ruler.low / (self.gain * width)).to(sent[BIAS]),
        }

    def run(self, observation: MaliciousServer, knowledge: ImprintKnowledge, *, round: int = 0) -> Imprints:
        """Read the pictures off the sum of `round`; its scale, sign and weights do not matter.

        Raises InputError for a view without the sum and its own broadcast, a round that was not recorded, or a sum that
        is not finite.
        """
        require_view(self.name, observation, MaliciousServer)
        if round not in observation.sums:
            raise InputError(f"round {round} was not recorded; recorded: {sorted(observation.sums)}")
        total, sent = observation.sums[round], observation.sent[round]
        clients = observation.cohorts[round].shape[-1]
        return read_off(total[WEIGHT], total[BIAS], sent[BIAS].abs().amax(1), clients, self.kind, knowledge)


def read_off(
    weight: Tensor, bias: Tensor, planted: Tensor, clients: int, kind: Kind, knowledge: ImprintKnowledge
) -> Imprints:
    """The pictures that a layer's part of a sum over `clients` gives away, `weight` [lanes, bins, pixels].

    `bias` [lanes, bins] is its other part, and `planted` [lanes, bins] are the largest biases that were sent. Raises
    InputError for a sum that is not finite.
    """
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise InputError("the sum holds NaN or infinite values; no picture can be read off it")
    # An update is a difference of two parameters, and a sum of many: below their rounding there is nothing to read.
    rounding = torch.finfo(bias.dtype).eps * (planted.to(bias) * clients**0.5 + bias.abs())
    error = (knowledge.error**2 + rounding**2).sqrt()
    if kind == "dense":
        weight = weight - torch.cat([weight[:, 1:], torch.zeros_like(weight[:, :1])], 1)
        bias = bias - torch.cat([bias[:, 1:], torch.zeros_like(bias[:, :1])], 1)
        error = 2**0.5 * error
    occupied = bias.abs() > 4 * error
    found = torch.where(occupied[..., None], weight / torch.where(occupied, bias, 1)[..., None], 0)
    deviation = torch.where(occupied, error / bias.abs(), torch.inf)
    slack = 4 * deviation
    inside = ((found > -slack[..., None]) & (found < 1 + slack[..., None])).all(-1)
    rows, low, high = (value.to(found) for value in (knowledge.ruler.rows, knowledge.ruler.low, knowledge.ruler.high))
    measured, near = (found * rows).sum(-1), slack * rows.norm(dim=1) + 1e-6 * knowledge.ruler.spread
    at_home = (measured > low - near) & (measured <= high + near)
    return Imprints(
        pictures=found.unflatten(-1, knowledge.shape),
        occupied=occupied,
        deviation=deviation,
        single=occupied & inside & at_home,
    )
