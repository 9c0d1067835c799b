"""SPEAR: whole batches, exactly, off a fully connected layer with ReLU (Dimitrov et al. 2024).

With a batch's inputs X [examples, inputs] and the gradients Δ [examples, outputs] of what the layer puts out, the
weight gradient is ∂W = ΔᵀX, of rank `examples`. A singular value decomposition gives some factors L·R of it, and
Δᵀ = L·Q, X = Q⁻¹·R for an unknown invertible Q. ReLU makes Δ sparse: about half of the units are off for a picture. So
a column of Q is what `examples` − 1 rows of L, all of them off for that picture, leave in their null space. Such rows
are drawn until every column has been met; directions are told from chance by how sparse L·q is
(section 3.3). The columns' lengths come of the bias: ∂b = L·Q·1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates, check_fits
from attacks.reconstruction.first_layer import first_layer
from attacks.reconstruction.labels import labels_of_pictures
from attacks.reconstruction.rank import check_examples, gradient_rank
from attacks.reconstruction.verification import check_one_step, verified
from fl_core.errors import InputError, check_number
from fl_core.seeds import generator
from fl_core.views import Server


@dataclass(frozen=True, kw_only=True)
class LayerBatch:
    """What entered a layer and what came back to it: `inputs` [examples, inputs], `gradients` [examples, outputs].

    `drawn` submatrices were tried. `score` is the share of units and pictures whose being off the answer explains. No
    example is there where too few directions were found.
    """

    inputs: Tensor
    gradients: Tensor
    drawn: int
    score: float


def invert_layer(
    weight: Tensor,
    bias: Tensor,
    sent: tuple[Tensor, Tensor],
    examples: int,
    draw: torch.Generator,
    *,
    submatrices: int = 2_000_000,
    zero: float = 1e-6,
    least_off: float = 0.1,
) -> LayerBatch:
    """A batch of `examples` from the gradients `weight` [outputs, inputs] and `bias` [outputs] of a ReLU layer.

    Any layer of a network will do; `sent` are its weight and bias. An entry of L·q counts as off under `zero` of its
    largest; a direction is a candidate where a share `least_off` of the units that moved is off beyond the drawn rows.
    The search ends when the batch explains which units were off: a unit has a gradient where its value is positive.
    """
    weight, bias = weight.double(), bias.double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    left, right = left[:, :examples], values[:examples, None] * right[:examples]
    size = left.norm(dim=1)
    moved = left[size > 1e-9 * size.max()]  # a unit that is off for every picture tells nothing
    found, off = moved.new_zeros(0, examples), torch.zeros(0, dtype=torch.long)
    chunk = min(2 ** min(examples + 2, 15), 20_000)
    # A direction turns up once in about 2^examples draws; a thousand times as many find none that is not there.
    submatrices = 1 if examples == 1 else min(submatrices, 1000 * 2 ** min(examples, 40))
    drawn, best, best_score = 0, None, -1.0
    while drawn < submatrices and len(moved) >= examples:
        drawn += chunk
        vectors, zeros = _directions(moved, chunk, draw, zero, least_off)
        vectors, zeros = torch.cat([found, vectors]), torch.cat([off, zeros])
        before = len(found)
        found, off = _distinct(vectors, zeros)
        if len(found) == before and best is not None:
            continue
        columns = _pick(found, off, examples)
        if len(columns) < examples:
            continue
        trial = _solve(left, right, bias, torch.stack(columns, 1))
        if trial is None:
            continue
        value = trial[0] @ sent[0].double().T + sent[1].double()
        on = trial[1].abs() > zero * trial[1].abs().amax(1, keepdim=True)
        score = ((value > 0) == on).double().mean().item()
        if score > best_score:
            best, best_score = trial, score
        if score > 0.995:
            break
    if best is None:
        best = weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0, len(weight))
    return LayerBatch(inputs=best[0], gradients=best[1], drawn=drawn, score=max(best_score, 0.0))


def _directions(
    moved: Tensor, chunk: int, draw: torch.Generator, zero: float, least_off: float
) -> tuple[Tensor, Tensor]:
    """Unit vectors in the null space of each drawn submatrix, with how many units they leave off, where many are."""
    examples = moved.shape[1]
    if examples == 1:
        return moved.new_ones(1, 1), torch.zeros(1, dtype=torch.long)
    # Rows drawn twice make a system singular, and so does one too many of them off; both are left out.
    rows = torch.randint(len(moved), (chunk, examples - 1), generator=draw)
    # One random row more makes the system square: its solution lies in the null space of the others.
    extra = torch.randn(chunk, 1, examples, generator=draw, dtype=moved.dtype)
    right = moved.new_zeros(examples, 1)
    right[-1] = 1
    solved, singular = torch.linalg.solve_ex(torch.cat([moved[rows], extra], 1), right.expand(chunk, -1, -1))
    vectors = solved.squeeze(2)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    vectors = vectors[(singular == 0) & torch.isfinite(vectors).all(1)]
    reached = (vectors @ moved.T).abs()
    is_off = reached < zero * reached.amax(1, keepdim=True)
    zeros = is_off.sum(1)
    kept = (zeros > examples - 1 + least_off * (len(moved) - examples + 1)).nonzero().flatten()
    kept = kept[zeros[kept].argsort(descending=True)][:200]
    vectors, zeros = _distinct(vectors[kept], zeros[kept])
    # All units that are off say the direction better than the few that were drawn.
    off = (vectors @ moved.T).abs()
    off = off < zero * off.amax(1, keepdim=True)
    for place in range(len(vectors)):
        _, _, basis = torch.linalg.svd(moved[off[place]], full_matrices=True)
        vectors[place] = basis[-1]
    return vectors, zeros


def _distinct(vectors: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """One of each direction, whatever its sign: the sparsest first."""
    order = zeros.argsort(descending=True, stable=True)
    vectors, zeros = vectors[order], zeros[order]
    kept = []
    left = torch.arange(len(vectors))
    while len(left):
        kept.append(int(left[0]))
        left = left[(vectors[left] @ vectors[left[0]]).abs() < 1 - 1e-5]
    return vectors[kept], zeros[kept]


def _pick(found: Tensor, off: Tensor, examples: int) -> list[Tensor]:
    """Greedily the sparsest directions that none of those picked already spans."""
    picked: list[Tensor] = []
    basis: list[Tensor] = []
    for vector in found[off.argsort(descending=True, stable=True)]:
        rest = vector.clone()
        for one in basis:
            rest -= (one @ rest) * one
        if rest.norm() > 1e-4:
            picked.append(vector)
            basis.append(rest / rest.norm())
        if len(picked) == examples:
            break
    return picked


def _solve(left: Tensor, right: Tensor, bias: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor] | None:
    """Inputs and gradients of the batch whose Q is `mixing` but for its columns' lengths; None where it has none."""
    lengths = torch.linalg.lstsq(left @ mixing, bias[:, None]).solution[:, 0]
    scaled = mixing * lengths
    inputs, singular = torch.linalg.solve_ex(scaled, right)
    return None if singular.item() or not torch.isfinite(inputs).all() else (inputs, (left @ scaled).T)


@dataclass(frozen=True, kw_only=True)
class Spear:
    """A batch behind a fully connected first layer with ReLU, for one local step; victim by victim.

    It takes about 2^examples/examples `submatrices`, so that batches beyond 20 or so are out of reach.
    """

    submatrices: int = 2_000_000

    name: ClassVar[str] = "SPEAR"
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def __post_init__(self) -> None:
        check_number("submatrices", self.submatrices, minimum=1, integer=True)

    def run(
        self, updates: Updates, knowledge: Knowledge, *, run: int = 0, victims: Sequence[int] | None = None, **_: Any
    ) -> Reconstruction:
        """Not cut to [0, 1]. Raises InputError for another first layer, several steps, a batch that fills the layer."""
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        first = first_layer(knowledge.model, knowledge.shape, "SPEAR and its like")
        check_examples(updates, knowledge)
        weight, bias = updates.moved[first.weight], updates.moved[first.bias]
        if knowledge.examples > min(weight.shape[1:]):
            raise InputError(
                f"SPEAR needs a layer that is wider than the batch; {first.weight} is "
                f"{weight.shape[1]}x{weight.shape[2]} and the batch {knowledge.examples}"
            )
        ranks = gradient_rank(weight, updates.sent[first.weight], knowledge.noise)
        pixels = weight.new_full((len(updates), knowledge.examples, weight.shape[2]), torch.nan)
        for place, victim in enumerate(victims if victims is not None else range(len(updates))):
            held = min(int(ranks[place]), knowledge.examples)
            found = invert_layer(
                weight[place],
                bias[place],
                (updates.sent[first.weight][place], updates.sent[first.bias][place]),
                held,
                generator(run, "submatrices", victim),
                submatrices=self.submatrices,
                zero=1e-6 if weight.dtype == torch.float64 else 1e-3,
            )
            if len(found.inputs):
                pixels[place, :held] = first.pixels(found.inputs).to(pixels)
        images = pixels.unflatten(2, knowledge.shape)
        labels = labels_of_pictures(updates, knowledge, images)
        return verified(updates, knowledge, images, labels, self.name, torch.zeros(len(updates)))
