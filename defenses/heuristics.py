"""Changes of an update that are said to protect it, and promise nothing: pruning, signs, few bits, unaccounted noise.

They act on each client's whole message [lanes, ...]: on its update, and on what an algorithm sends beside it
(SCAFFOLD's controls), which is made of the same gradients. What a defence sends for itself (`short/updates`) they leave
alone. A lane's result depends on that lane alone. A variable of whole numbers stays one, cut towards zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defenses.accounting import Unit
from defenses.base import Defense
from defenses.clip import SHORT
from defenses.noise import drawn, standard_normal
from defenses.statements import NoGuarantee
from fl_core.defended import Senders
from fl_core.errors import InputError, check_choice, check_number
from fl_core.optimizers import Tree
from fl_core.plan import Plan

Noise = Literal["gaussian", "laplace"]


@dataclass(frozen=True, kw_only=True)
class Pruning(Defense):
    """Set the smallest `share` of an update's entries to zero, by magnitude over all variables together.

    Gradient pruning as in Zhu, Liu & Han 2019 ("Deep Leakage from Gradients", section 5.2). What is pruned is lost, and
    not kept for later rounds as by Lin et al. 2018. Of d entries ⌊share·d⌋ go, and never the last one; of equal ones
    those that come later in the tree.
    """

    share: float

    name = "pruning"
    lengthens = False

    def __post_init__(self) -> None:
        check_number("defense.share", self.share, above=0, below=1)

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        return _changed(updates, lambda message: largest(message, lambda count: count - whole_part(self.share * count)))

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(reason="pruning adds no noise: what is kept is sent as it is", unit=unit, view=view)


@dataclass(frozen=True, kw_only=True)
class TopK(Defense):
    """Send the largest entries of an update, by magnitude over all variables together, and zero for the others.

    `keep` from 1 on is how many entries (all, where there are fewer), below 1 the share of them, rounded up. Of equal
    ones the first in the tree are kept. Without the error feedback of Stich et al. 2018: what is not sent is lost.
    """

    keep: int | float

    name = "top_k"
    lengthens = False

    def __post_init__(self) -> None:
        check_number("defense.keep", self.keep, above=0)
        if self.keep >= 1 and not isinstance(self.keep, int):
            raise InputError(
                f"defense.keep is {self.keep!r}; it must be a whole number of entries, or a share above 0 and below 1"
            )

    def entries(self, count: int) -> int:
        """How many of `count` entries are sent."""
        return min(int(self.keep), count) if self.keep >= 1 else -whole_part(-self.keep * count)

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        return _changed(updates, lambda message: largest(message, self.entries))

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(reason="the largest entries are sent as they are, without noise", unit=unit, view=view)


@dataclass(frozen=True, kw_only=True)
class Sign(Defense):
    """Send each entry's sign, and one magnitude a variable: the mean of its entries' magnitudes.

    Signs as in Bernstein et al. 2018 (signSGD), scaled by ‖u‖₁/d as in Karimireddy et al. 2019, without their error
    feedback. An entry that is zero stays zero. No variable gets longer, since (‖u‖₁/d)·√d ≤ ‖u‖₂.
    """

    name = "sign"
    lengthens = False

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        return _changed(
            updates,
            lambda message: {
                name: value.sign() * _spread(value, value.abs().flatten(1).mean(1) if value.dim() > 1 else value.abs())
                for name, value in message.items()
            },
        )

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="signs follow from the update alone: nothing about them is random", unit=unit, view=view
        )


@dataclass(frozen=True, kw_only=True)
class KBit(Defense):
    """Round each entry at random to one of the 2^`bits` − 1 multiples of m/s within ±m, without bias.

    m is the largest magnitude in the entry's variable and s = 2^(`bits` − 1) − 1, so that `bits` hold the sign and the
    multiple. An entry goes to its upper neighbour with the chance that keeps its mean (Alistarh et al. 2017, QSGD,
    section 3.1); like their experiments, and unlike their theorems, it takes m for the scale, not the Euclidean norm.
    An entry moves by less than m/s.
    """

    bits: int

    name = "k_bit"
    lengthens = True

    def __post_init__(self) -> None:
        check_number("defense.bits", self.bits, minimum=2, maximum=16, integer=True)

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        levels = 2 ** (self.bits - 1) - 1

        def rounded(message: Tree) -> Tree:
            coins = drawn(message, senders.generators, lambda row, draw: row.uniform_(generator=draw))
            found: Tree = {}
            for name, value in message.items():
                most = value.abs().flatten(1).amax(1) if value.dim() > 1 else value.abs()
                scale = _spread(value, torch.where(most > 0, most, 1.0))
                steps = value.abs() / scale * levels
                floors = steps.floor()
                found[name] = value.sign() * (floors + (coins[name] < steps - floors)) / levels * scale
            return found

        return _changed(updates, rounded)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="which values rounding can come out at tells updates apart, however the coins fall",
            unit=unit,
            view=view,
        )


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Defense):
    """Add independent noise of standard deviation `std` to each entry of an update.

    `std` is in the update's own unit, whatever the update's length: after one local step at rate η an update is η times
    a gradient, so that noise of deviation s on gradients, as in Zhu, Liu & Han 2019 (section 5.1), is `std` = η·s.
    `noise` is `gaussian` or `laplace` (of scale std/√2).
    """

    std: float
    noise: Noise = "gaussian"

    name = "random_noise"
    lengthens = True

    def __post_init__(self) -> None:
        check_number("defense.std", self.std, above=0)
        check_choice("defense.noise", self.noise, ("gaussian", "laplace"))

    def on_update(self, updates: Tree, senders: Senders) -> Tree:
        def noised(message: Tree) -> Tree:
            if self.noise == "gaussian":
                draws = standard_normal(message, senders.generators)
            else:
                draws = drawn(message, senders.generators, _standard_laplace)
            return {name: value + self.std * draws[name] for name, value in message.items()}

        return _changed(updates, noised)

    def guarantee(self, view: str, unit: Unit, plan: Plan) -> NoGuarantee:
        return NoGuarantee(
            reason="the noise is not accounted for: nothing bounds what it has to hide", unit=unit, view=view
        )


def largest(message: Tree, count_of: Callable[[int], int]) -> Tree:
    """The message [lanes, ...] with all but `count_of(d)` of each lane's d entries zero: the largest by magnitude.

    One is kept at least, and of equal ones the first in the tree. What is not a number counts as large, so that
    divergence shows.
    """
    flat = torch.cat([value.abs().reshape(len(value), -1) for value in message.values()], 1)
    size = flat.shape[1]
    count = max(1, count_of(size))
    # The value itself is the same on every device, whichever of equal entries a sort puts first.
    least = flat.kthvalue(size - count + 1, dim=1, keepdim=True).values
    above, equal = ~(flat <= least), flat == least
    kept = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    parts = kept.split([value[0].numel() for value in message.values()], 1)
    return {
        name: torch.where(part.view(value.shape), value, 0)
        for (name, value), part in zip(message.items(), parts, strict=True)
    }


def whole_part(value: float) -> int:
    """⌊value⌋, where a product that rounding left just below a whole number is that number."""
    return math.floor(value + 1e-9)


def _changed(updates: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The updates [lanes, ...] with what is their message changed; its numbers' types and the tree's order stay."""
    message = {name: value for name, value in updates.items() if name != SHORT}
    found = change({name: value if value.is_floating_point() else value.double() for name, value in message.items()})
    return {name: found[name].to(value.dtype) if name in found else value for name, value in updates.items()}


def _spread(like: Tensor, each: Tensor) -> Tensor:
    """A number a lane [lanes], to be broadcast over `like` [lanes, ...]."""
    return each.view(-1, *[1] * (like.dim() - 1))


def _standard_laplace(row: Tensor, draw: torch.Generator) -> None:
    """Fill with Laplace numbers of variance 1: differences of two exponential ones, which are never infinite."""
    both = row.new_empty(2, len(row)).exponential_(generator=draw)
    torch.sub(both[0], both[1], out=row).mul_(math.sqrt(0.5))
