"""L-BFGS for lanes: each has its own history and its own step length, and all are evaluated together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.errors import check_number
from fl_core.optimizers import Optimizer, Tree

_TALLY = ("accepted", "kept", "newest", "length")  # slots with one number a lane


@dataclass(frozen=True, kw_only=True)
class LBFGS(Optimizer):
    """Limited-memory BFGS with backtracking (Nocedal & Wright 2006, algorithms 7.4 and 3.1), one gradient a step.

    A step judges the point that the last one proposed and proposes another. The loss itself is not seen: its change
    along the direction is taken by the trapezoid rule from the slopes at both ends, exact for a quadratic, and has to
    satisfy Armijo's condition. A refused length shrinks to where the slope would vanish, at least to half and at
    most to a twentieth. The first length of a direction is `lr`, that of steepest descent `lr` over the gradient's
    1-norm, as in torch. `memory` pairs of steps and gradient changes are kept.
    """

    lr: float = 1.0
    memory: int = 20
    decrease: float = 1e-4

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("memory", self.memory, minimum=1, integer=True)
        check_number("decrease", self.decrease, above=0, below=0.5)

    def slots(self, variables: Tree) -> Tree:
        flat = _flat(variables, stacked=True)
        lanes, size = flat.shape
        return {
            "point": flat.clone(),
            "slope": torch.zeros_like(flat),
            "direction": torch.zeros_like(flat),
            "pairs": flat.new_zeros(lanes, 2 * self.memory, size),  # the steps, then the changes of the slope
            "products": torch.zeros(lanes, 2 * self.memory, 2 * self.memory, dtype=torch.float64, device=flat.device),
            **{name: flat.new_zeros(lanes) for name in _TALLY},
        }

    def step(self, variables: Tree, gradients: Tree, slots: Tree, step: int) -> None:
        stacked = slots["length"].dim() == 1
        mine = slots if stacked else {name: value.unsqueeze(0) for name, value in slots.items()}
        trial, slope = _flat(variables, stacked), _flat({name: gradients[name] for name in variables}, stacked)
        # What is not finite is refused like any other bad step.
        finite = torch.isfinite(slope).all(1)
        slope = torch.where(finite[:, None], slope, 0.0)
        first = mine["accepted"] == 0
        before = (mine["slope"] * mine["direction"]).sum(1)
        after = (slope * mine["direction"]).sum(1)
        good = finite & (first | (after <= (1 - 2 * self.decrease) * before.abs()))
        self._accept(mine, good, first, trial, slope)
        shorter = (before / (before - after)).nan_to_num(0.05, 0.05, 0.05).clamp(0.05, 0.5)
        mine["length"].copy_(torch.where(good, self._first_length(mine), mine["length"] * shorter))
        _write(variables, mine["point"] + mine["length"][:, None] * mine["direction"], stacked)

    def settled(self, variables: Tree, slots: Tree) -> Tree:
        """The last accepted point [lanes, ...]; the variables themselves hold one that is still to be judged."""
        found = {name: value.clone() for name, value in variables.items()}
        _write(found, slots["point"], stacked=True)
        return found

    def _accept(self, mine: Tree, good: Tensor, first: Tensor, trial: Tensor, slope: Tensor) -> None:
        """Move the lanes that are `good` to their trial point, and give them a new direction."""
        moved, changed = trial - mine["point"], slope - mine["slope"]
        curved = (moved * changed).sum(1) > 1e-10 * changed.square().sum(1)
        self._remember(mine, (good & ~first & curved).nonzero().flatten(), moved, changed)
        mine["accepted"] += good
        for name, value in (("point", trial), ("slope", slope)):
            mine[name].copy_(torch.where(good[:, None], value, mine[name]))
        direction = -self._times_inverse(mine)
        downhill = (direction * mine["slope"]).sum(1) < 0
        mine["kept"].mul_(downhill)  # a history that does not lead down is forgotten
        direction = torch.where(downhill[:, None], direction, -mine["slope"])
        mine["direction"].copy_(torch.where(good[:, None], direction, mine["direction"]))

    def _remember(self, mine: Tree, lanes: Tensor, moved: Tensor, changed: Tensor) -> None:
        """Put a new pair in the place of the oldest one, and take its products with all pairs."""
        place = mine["newest"][lanes].long()
        for offset, value in ((0, moved), (self.memory, changed)):
            mine["pairs"][lanes, offset + place] = value[lanes]
        found = _with_pairs(mine, torch.stack([moved, changed], 1))[lanes]
        for number, offset in enumerate((0, self.memory)):
            mine["products"][lanes, :, offset + place] = found[:, number]
            mine["products"][lanes, offset + place] = found[:, number]
        mine["newest"][lanes] = ((place + 1) % self.memory).to(mine["newest"])
        mine["kept"][lanes] = (mine["kept"][lanes] + 1).clamp(max=self.memory)

    def _first_length(self, mine: Tree) -> Tensor:
        steepest = (1 / mine["slope"].abs().sum(1).clamp(min=1e-30)).clamp(max=1.0)
        return self.lr * torch.where(mine["kept"] > 0, torch.ones_like(steepest), steepest)

    def _times_inverse(self, mine: Tree) -> Tensor:
        """The slope times the inverse Hessian that the history gives, in its compact form (Byrd et al. 1994, eq. 2.5).

        Coefficients of the pairs come from their products, which are at hand, by triangular solves, so that vectors are
        touched twice only: to begin with, and to add the pairs up. A pair that is not there is a step and a change of
        zero whose product counts as one.
        """
        along = _with_pairs(mine, mine["slope"][:, None])[:, 0]
        age = torch.arange(self.memory, device=along.device) - self.memory  # oldest first
        order = ((mine["newest"][:, None] + age) % self.memory).long()
        there = (age >= -mine["kept"][:, None]).double()
        both = torch.cat([order, order + self.memory], 1)
        products = mine["products"].gather(1, both[:, :, None].expand_as(mine["products"]))
        products = products.gather(2, both[:, None, :].expand_as(products))
        known = torch.cat([there, there], 1)
        products = products * known[:, :, None] * known[:, None, :]
        by_step, by_change = (along.gather(1, both) * known)[..., None].split(self.memory, 1)
        curvature = products[:, : self.memory, self.memory :] + torch.diag_embed(1 - there)
        changes, diagonal = products[:, self.memory :, self.memory :], curvature.diagonal(dim1=1, dim2=2)
        newest = changes[:, -1, -1]
        scale = torch.where(there[:, -1] > 0, diagonal[:, -1] / newest.clamp(min=1e-300), 1.0)[:, None, None]
        upper = curvature.triu()
        of_changes = torch.linalg.solve_triangular(upper, by_step, upper=True)
        left = diagonal[..., None] * of_changes + scale * (changes @ of_changes - by_change)
        of_steps = torch.linalg.solve_triangular(upper.mT, left, upper=False)
        found = torch.cat([of_steps, -scale * of_changes], 1)[..., 0] * known
        mix = torch.zeros_like(along).scatter(1, both, found)
        summed = torch.bmm(mix.to(mine["slope"])[:, None], mine["pairs"])[:, 0]
        return scale[:, 0].to(summed) * mine["slope"] + summed


def _with_pairs(mine: Tree, vectors: Tensor) -> Tensor:
    """The products [lanes, vectors, pairs] of a few vectors [lanes, vectors, numbers] with each pair.

    A vector lies in a row: as a column it takes a CPU over ten times as long.
    """
    return torch.bmm(vectors, mine["pairs"].mT).double()


def _flat(variables: Tree, stacked: bool) -> Tensor:
    """[lanes, numbers] of variables [lanes, ...], or of one lane's [...]."""
    return torch.cat([(value if stacked else value.unsqueeze(0)).flatten(1) for value in variables.values()], 1)


def _write(variables: Tree, flat: Tensor, stacked: bool) -> None:
    start = 0
    for value in variables.values():
        size = value[0].numel() if stacked else value.numel()
        value.copy_(flat[:, start : start + size].reshape(value.shape))
        start += size
