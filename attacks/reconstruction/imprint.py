"""Robbing the Fed: a layer that the server adds sorts the pictures of a whole cohort into bins, and a sum keeps them.

Fowl et al. 2022, section 4. All rows of the layer measure the same number of a picture, its brightness say, and row l
is active where that number lies above the threshold t_l. Every row passes the loss the same gradient g, so that

    ∂W_l = Σ over the pictures above t_l of g·x,   ∂b_l = Σ over the same of g,

and row l minus row l+1 leaves the pictures between t_l and t_{l+1} alone: where there is one, x = ∂W/∂b. A sum over
clients is a sum over more pictures, so that masks hide nothing. With k bins that are equally likely, a picture is alone
among n with the chance (1 − 1/k)^(n−1).

The sparse form (their answer to federated averaging) clamps each row between its two thresholds: a picture then moves
its own row alone. Nothing has to be subtracted, and of an update's length a picture gets a part that does not shrink
with the number of bins, which is what counts under a clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl_core.errors import InputError, check_number
from fl_core.optimizers import Tree
from fl_core.seeds import generator
from fl_core.views import MaliciousServer, require_view

Shape = tuple[int, int, int]

WEIGHT, BIAS = "imprint.weight", "imprint.bias"


def brightness(shape: Shape) -> Tensor:
    """The row [pixels] that measures a picture's mean brightness."""
    size = shape[0] * shape[1] * shape[2]
    return torch.full((size,), 1 / size)


def projection(shape: Shape, run: int) -> Tensor:
    """A random row [pixels] of about unit length. It tells pictures of few grey levels apart, whose brightness ties."""
    size = shape[0] * shape[1] * shape[2]
    drawn: Tensor = torch.randn(size, generator=generator(run, "imprint row")) / size**0.5
    return drawn


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """What sorts the pictures: `row` [pixels] measures one, and bin l lies between `edges` l and l+1 [bins + 1].

    The outermost edges enclose every picture with pixels in [0, 1]. `spread` is the measure's standard deviation, as
    the quantiles tell it.
    """

    row: Tensor
    edges: Tensor
    spread: float

    def __post_init__(self) -> None:
        if not bool((self.edges.diff() > 0).all()):
            raise InputError(
                "two bins of the imprint layer begin at the same number: the measure ties too many pictures, or its "
                "quantiles lie outside [0, 1] pixels; use fewer bins or another row"
            )

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    def bin_of(self, pictures: Tensor) -> Tensor:
        """The bin [pictures] of each picture [pictures, ...]."""
        measured = pictures.flatten(1).to(self.row) @ self.row
        return torch.searchsorted(self.edges, measured, right=False) - 1


def ruler(row: Tensor, bins: int, quantile: Callable[[Tensor], Tensor]) -> Ruler:
    """Bins that are equally likely as far as the server knows.

    `quantile` maps chances [...] to values of the measure: an `empirical` one of public pictures, or the `icdf` of a
    `torch.distributions.Normal` or `Laplace` with a mean and a scale that it guesses.
    """
    check_number("bins", bins, minimum=2, integer=True)
    row = row.double()
    inner = quantile(torch.arange(1, bins, dtype=torch.float64) / bins)
    low, high = row.clamp(max=0).sum(), row.clamp(min=0).sum()  # of any picture in [0, 1]
    margin = 1e-3 * (high - low)
    middle = quantile(torch.tensor([0.1587, 0.8413], dtype=torch.float64))
    return Ruler(
        row=row,
        edges=torch.cat([(low - margin)[None], inner.to(row), (high + margin)[None]]),
        spread=float(middle[1] - middle[0]) / 2,
    )


def empirical(row: Tensor, public: Tensor) -> Callable[[Tensor], Tensor]:
    """Quantiles of the measure over `public` pictures [pictures, ...]."""
    measured = public.flatten(1).double() @ row.double()
    return lambda chances: torch.quantile(measured, chances.to(measured))


class Imprinted(nn.Module):
    """`inner` with the imprint layer beside it: the layer's units are summed up and moved into the logits.

    The sum goes to every second logit with the opposite sign, about one logit for a spread of the measure (or, where
    `sparse`, for a bin), so that a picture's gradient has about the same length whatever the model makes of it. The
    rows are small and their sum is multiplied by `gain` in return, which makes the layer's gradients longer, and its
    weights move further for their size. Only the layer's own weight [bins, pixels] and bias [bins] are trained; how its
    sum is passed on is code.
    """

    def __init__(
        self, inner: nn.Module, shape: Shape, classes: int, bins: int, sparse: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        check_number("bins", bins, minimum=2, integer=True)
        check_number("gain", gain, above=0)
        self.imprint = nn.Linear(shape[0] * shape[1] * shape[2], bins)
        self.inner = inner
        self.sparse, self.gain = sparse, gain
        signs = 1.0 - 2.0 * (torch.arange(max(classes, bins)) % 2)
        # Buffers outside the state are neither trained nor averaged.
        self.register_buffer("passing", signs[:classes].clone(), persistent=False)
        # Of the units below a picture's own bin, all saturated, neighbours cancel: the sum stays between 0 and 1.
        each = signs[:bins] if sparse else torch.full((bins,), 1 / bins)
        self.register_buffer("weighing", gain * each, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of pixels [batch, channels, height, width] in [0, 1]."""
        units = self.imprint(pixels.flatten(1))
        units = units.clamp(0, 1 / self.gain) if self.sparse else units.relu()
        # One number a picture, so that every unit gets the very same gradient, to the bit.
        passed = (units * self.weighing).sum(1, keepdim=True) - 0.5
        scores: Tensor = self.inner(pixels) + passed * self.passing
        return scores


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
    """A picture a bin, [replicas, bins, channels, height, width], not cut to [0, 1].

    `occupied` [replicas, bins] says in which bins the sum holds anything beyond its error; elsewhere a picture is 0.
    `deviation` is that of a pixel as the sum's error has it, inf where there is no picture. `single` says which of them
    the server takes for one picture: the pixels lie in [0, 1] and measure what their bin does, but for their own error.
    Several pictures in a bin come out as a mean with weights g, which may pass, too.
    """

    pictures: Tensor
    occupied: Tensor
    deviation: Tensor
    single: Tensor


@dataclass(frozen=True, kw_only=True)
class Imprint:
    """The imprint attack with a layer of `bins` bins, by Fowl et al. 2022; see the module's own words.

    After one local step the recovery is exact for a picture that is alone. What more local steps do depends on how far
    the first one moves the layer, rate times `gain`². A little: a sparse layer adds up the pictures of all steps, and
    gives away who is alone over all of them; a dense one blurs, as the thresholds of neighbours part. Very far: the
    units of a dense layer are dead or always on after the first step, which stands in the update as if it were alone.
    """

    bins: int
    sparse: bool = False
    gain: float = 1.0

    name: ClassVar[str] = "imprint layer"
    needs: ClassVar[type[MaliciousServer]] = MaliciousServer
    letter: ClassVar[str] = "G"
    """A data-enhanced manipulator (Carletti et al. 2025): it changes the model, and knows the pictures' statistics."""

    def __post_init__(self) -> None:
        check_number("attack.bins", self.bins, minimum=2, integer=True)
        check_number("attack.gain", self.gain, above=0)

    def model(self, inner: nn.Module, shape: Shape, classes: int) -> Imprinted:
        """The architecture that the clients are sent."""
        return Imprinted(inner, shape, classes, self.bins, self.sparse, self.gain)

    def plant(self, sent: Tree, ruler: Ruler) -> Tree:
        """The parameters that the clients are sent: `sent` [..., ] with the imprint layer's own replaced."""
        if ruler.bins != self.bins:
            raise InputError(f"the ruler has {ruler.bins} bins and the imprint layer {self.bins}; make them alike")
        edges = ruler.edges
        scale = self.gain * ((edges[1:] - edges[:-1]) if self.sparse else torch.full_like(edges[1:], ruler.spread))
        weight, bias = ruler.row / scale[:, None], -edges[:-1] / scale
        return sent | {
            WEIGHT: weight.to(sent[WEIGHT]).expand_as(sent[WEIGHT]).clone(),
            BIAS: bias.to(sent[BIAS]).expand_as(sent[BIAS]).clone(),
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
        weight, bias = total[WEIGHT], total[BIAS]
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise InputError("the sum holds NaN or infinite values; no picture can be read off it")
        # An update is a difference of two parameters, and a sum of many: below their rounding there is nothing to read.
        clients = observation.cohorts[round].shape[-1]
        rounding = torch.finfo(bias.dtype).eps * (sent[BIAS].abs().amax(1).to(bias) * clients**0.5 + bias.abs())
        error = (knowledge.error**2 + rounding**2).sqrt()
        if not self.sparse:
            weight = weight - torch.cat([weight[:, 1:], torch.zeros_like(weight[:, :1])], 1)
            bias = bias - torch.cat([bias[:, 1:], torch.zeros_like(bias[:, :1])], 1)
            error = 2**0.5 * error
        occupied = bias.abs() > 4 * error
        found = torch.where(occupied[..., None], weight / torch.where(occupied, bias, 1)[..., None], 0)
        deviation = torch.where(occupied, error / bias.abs(), torch.inf)
        slack = 4 * deviation
        inside = ((found > -slack[..., None]) & (found < 1 + slack[..., None])).all(-1)
        edges = knowledge.ruler.edges.to(found)
        row = knowledge.ruler.row.to(found)
        measured, near = found @ row, slack * row.norm() + 1e-6 * (edges[-1] - edges[0])
        at_home = (measured > edges[:-1] - near) & (measured < edges[1:] + near)
        return Imprints(
            pictures=found.unflatten(-1, knowledge.shape),
            occupied=occupied,
            deviation=deviation,
            single=occupied & inside & at_home,
        )
