"""The directions in which a mixture of sparse columns is sparse, by sampling rows (Dimitrov et al. 2024, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LOOSE, _STEPS = 1e-2, 5  # where an entry begins to count as zero while a direction is refined, of the column's size
_SURE = 10.0  # how far above the noise the second smallest singular value has to be for a null space to be one line
_ALONE = 0.99  # the leverage from which a row is the only one that pins a direction down
_ALIKE = 0.9999  # the cosine from which two directions give the same column
_ROUNDING = 1e-12  # what float64 may leave of an entry that is zero, of the largest singular value's share of it
_AT_ONCE = 512  # directions refined at once


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """∂Z·[X 1]ᵀ as `left` [units, b] times `right` [b, pixels + 1], the rows of `right` orthonormal.

    `noise` is the standard deviation of an entry of `left` about what it would be without rounding or a defence, by
    the singular values beyond the b largest.
    """

    left: Tensor
    right: Tensor
    noise: float

    @staticmethod
    def of(gradient: Tensor, pictures: int) -> Mixture:
        """The factors of a `gradient` [units, pixels + 1] in float64, the last column the bias's."""
        _, values, basis = torch.linalg.svd(gradient, full_matrices=False)
        right = basis[:pictures]
        units, pixels = gradient.shape
        beyond = values[pictures:].square().sum().item() / max((units - pictures) * (pixels - pictures), 1)
        rounding = _ROUNDING * values[0].item() / units**0.5
        return Mixture(left=gradient @ right.T, right=right, noise=beyond**0.5 + rounding)

    def separated(self, directions: Tensor) -> tuple[Tensor, Tensor] | None:
        """X [b, pixels] and ∂Z [units, b] for `directions` [b, b], one a row; None where no scale makes them whole.

        The scales are those at which ∂Z·1 is the bias's gradient.
        """
        rows, failed = torch.linalg.solve_ex(directions.T, self.right)  # [b, pixels + 1], row i along [x_i 1]
        scale = rows[:, -1]
        if failed or not (torch.isfinite(rows).all() and (scale.abs() > 1e-9 * rows.abs().amax(1)).all()):
            return None
        return rows[:, :-1] / scale[:, None], self.left @ directions.T * scale


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """`directions` [found, b] of length 1, and which units each leaves at zero, `off` [found, units]."""

    directions: Tensor
    off: Tensor

    def __len__(self) -> int:
        return len(self.directions)

    def joined(self, other: Candidates, left: Tensor) -> Candidates:
        """With those of `other` whose columns are new."""
        directions, off = list(self.directions), list(self.off)
        known = _unit(self.directions @ left.T)
        for direction, zeros in zip(other.directions, other.off, strict=True):
            column = _unit(direction @ left.T)
            if len(known) and (known @ column).abs().max() > _ALIKE:
                continue
            known = torch.cat([known, column[None]])
            directions.append(direction)
            off.append(zeros)
        if not directions:
            return self
        return Candidates(directions=torch.stack(directions), off=torch.stack(off))


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return unit


def find_directions(
    mixture: Mixture, weight: Tensor, bias: Tensor, *, samples: int, chunk: int, draw: torch.Generator
) -> Tensor | None:
    """Rows of Qᵀ [b, b]; None where `samples` sets of rows do not give that many.

    The search ends as soon as the pictures found turn the layer of this `weight` and `bias` on exactly where their
    gradients are not zero.
    """
    alive = (mixture.left.norm(dim=1) > _SURE * mixture.noise * mixture.left.shape[1] ** 0.5).nonzero().flatten()
    left = mixture.left[alive]
    pictures = left.shape[1]
    if len(left) < 2 * pictures:
        return None
    if pictures == 1:
        return torch.ones(1, 1).to(left)
    found = Candidates(directions=left[:0], off=torch.zeros(0, len(left), dtype=torch.bool))
    best, matched = None, -1.0
    for start in range(0, samples, chunk):
        sets = _sets_of_rows(min(chunk, samples - start), often_off(found.off), pictures - 1, draw)
        before = len(found)
        found = found.joined(_refined(*_sparse(left, sets), left, mixture.noise), left)
        if len(found) == before or len(found) < pictures:
            continue
        best, matched = greedy(found, mixture, alive, weight, bias)
        if matched > 1 - 1e-3:
            break
    return best


def often_off(off: Tensor) -> Tensor:
    """How likely each unit is off for one more picture [units], by the pictures that were found, `off` [found, units].

    What turns one picture on or off does so for others, too: zeros of different pictures meet in the same units.
    """
    return (off.sum(0) + 1) / (len(off) + 2)


def _sets_of_rows(sets: int, chances: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Random `sets` of different rows, [sets, size], drawn one after another in proportion to the `chances` [rows].

    One shuffle of the rows is dealt out to several sets, up to half of the rows, as the last ones are the unlikely.
    """
    each = max(len(chances) // (2 * size), 1)
    waits = -torch.rand(-(-sets // each), len(chances), generator=draw, dtype=torch.float64).log() / chances
    return waits.argsort(1)[:, : each * size].reshape(-1, size)[:sets]


def null_directions(left: Tensor, sets: Tensor) -> Tensor:
    """The unit vectors [sets, b] that the rows of `left` [units, b] in each of `sets` [sets, b − 1] map to zero."""
    count, pictures = len(sets), left.shape[1]
    picked = torch.cat([left[sets], torch.ones(count, 1, pictures).to(left)], 1)
    aim = torch.zeros(pictures, 1).to(left)
    aim[-1] = 1
    solved, _ = torch.linalg.solve_ex(picked, aim.expand(count, -1, -1))
    return _unit(torch.nan_to_num(solved[..., 0], nan=0.0, posinf=0.0, neginf=0.0))


def _sparse(left: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """The sparsest columns among the sets' directions: which entries are about zero [found, units], fitted ones aside.

    Also the directions' fitted rows [found, b − 1]. There have to be enough other zeros to pin a direction down again.
    """
    columns = null_directions(left, sets).float() @ left.T.float()
    size = columns.square().mean(1, keepdim=True).sqrt()
    small = (columns.abs() < _LOOSE * size).scatter_(1, sets, False)
    count = small.sum(1)
    # In the order drawn, as the sparsest may all be one picture's.
    best = (count >= _LOOSE * len(left) + left.shape[1]).nonzero().flatten()[:_AT_ONCE]
    return small[best], sets[best]


def _refined(small: Tensor, sets: Tensor, left: Tensor, noise: float) -> Candidates:
    """Directions that their zeros pin down, by least squares over these; the rows that were fitted first aside.

    A direction in between two columns is zero where both are, and on a row more that it was fitted to: it hangs on that
    row alone, whose leverage is 1, and is dropped.
    """
    pictures = left.shape[1]
    for step in range(_STEPS):
        inside = small.to(left)
        values, vectors = torch.linalg.eigh(torch.einsum("ku,ua,uc->kac", inside, left, left))
        kept = values[:, 1] > inside.sum(1) * (_SURE * noise) ** 2
        columns = vectors[:, :, 0] @ left.T
        size = columns.square().mean(1, keepdim=True).sqrt()
        small = (columns.abs() < 6 * noise + _LOOSE ** (1 + step) * size).scatter_(1, sets, False)
        kept &= small.sum(1) >= pictures
        small, sets = small[kept], sets[kept]
    if not len(small):
        return Candidates(directions=left[:0], off=small)
    # Once more without squares, which cost half of the digits.
    leverage, values, basis = torch.linalg.svd(small.unsqueeze(2) * left, full_matrices=False)
    directions = basis[:, -1]
    columns = (directions @ left.T).abs()
    kept = leverage[:, :, :-1].square().sum(2).amax(1) < _ALONE
    kept &= values[:, -2] > small.sum(1).sqrt() * _SURE * noise
    return Candidates(directions=directions[kept], off=columns[kept] < 12 * noise)


def greedy(
    found: Candidates, mixture: Mixture, alive: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor | None, float]:
    """As many independent directions as pictures, and their score; swapped while that raises the score (section 3.4).

    The sparsest come first. The score λ is the share of units and pictures for which the gradient is zero exactly where
    the picture leaves the unit off.
    """
    pictures = mixture.left.shape[1]
    order = found.off.sum(1).argsort(descending=True).tolist()
    chosen: list[int] = []
    for one in order:
        trial = _unit(found.directions[[*chosen, one]] @ mixture.left.T)
        if torch.linalg.svdvals(trial)[-1] > 1e-6:
            chosen.append(one)
        if len(chosen) == pictures:
            break
    else:
        return None, -1.0
    best = sparsity_match(found, chosen, mixture, alive, weight, bias)
    for other in [one for one in order if one not in chosen]:
        for place in range(pictures):
            swapped = [*chosen[:place], other, *chosen[place + 1 :]]
            score = sparsity_match(found, swapped, mixture, alive, weight, bias)
            if score > best:
                chosen, best = swapped, score
                break
    return found.directions[chosen], best


def sparsity_match(
    found: Candidates, chosen: list[int], mixture: Mixture, alive: Tensor, weight: Tensor, bias: Tensor
) -> float:
    """λ of the `chosen` directions, between 0 and 1; −1 where they cannot be told apart."""
    separated = mixture.separated(found.directions[chosen])
    if separated is None:
        return -1.0
    entered, _ = separated
    on = entered @ weight[alive].T + bias[alive] > 0
    return float((on != found.off[chosen]).double().mean())
