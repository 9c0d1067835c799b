"""Pictures as independent components of a layer's gradient (Kariyappa et al. 2023, "Cocktail Party Attack").

Each row of a fully connected first layer's gradient is a mixture of what entered it, ∂W = ∂Z·Xᵀ, whatever follows the
layer, and so is an update of several local steps. Whitened, the rows span b sources of unit variance, and an unmixing
matrix of unit rows is sought whose sources are far from Gaussian (log cosh, Hyvärinen 1999), smooth as pictures are,
and not the same one several times (section 4.1). Nothing is exact here, and no batch is too large for a try.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Shape, Updates, check_fits
from attacks.reconstruction.first_layer import FirstLayer, first_layer
from attacks.reconstruction.rank import check_examples, gradient_rank
from attacks.reconstruction.spear import labels_of
from fl_core.errors import check_number
from fl_core.seeds import generator

GAUSSIAN = 0.374567
"""E log cosh of a standard normal number."""


@dataclass(frozen=True, kw_only=True)
class CocktailParty:
    """For a model whose first layer is fully connected, with a bias; of the `restarts`, the one of the least loss.

    The loss of an unmixing matrix is minimised by Adam for `iterations`, at `lr`, which falls to 0 as a cosine. It is
    minus the sources' mean distance from Gaussian, plus `total_variation` times the mean absolute difference of
    neighbouring pixels of the sources, of unit variance, plus `decorrelation` times the mean over pairs of
    exp(`sharpness`·|cosine of their rows|) − 1.
    """

    restarts: int = 1
    iterations: int = 500
    lr: float = 0.03
    total_variation: float = 3.0
    decorrelation: float = 0.1
    sharpness: float = 5.0

    name: ClassVar[str] = "cocktail party"
    letter: ClassVar[str] = "B"

    def __post_init__(self) -> None:
        check_number("restarts", self.restarts, minimum=1, integer=True)
        check_number("iterations", self.iterations, minimum=1, integer=True)
        check_number("lr", self.lr, above=0)
        check_number("total_variation", self.total_variation, minimum=0)
        check_number("decorrelation", self.decorrelation, minimum=0)
        check_number("sharpness", self.sharpness, above=0)

    def run(
        self,
        updates: Updates,
        knowledge: Knowledge,
        *,
        run: int = 0,
        victims: Sequence[int] | None = None,
        **_: Any,
    ) -> Reconstruction:
        """Attack each victim's update; `run` and the `victims`' numbers seed the restarts.

        Pictures are as many as the gradient has dimensions, at most those told of; the others have no answer. Each has
        the label whose gradient points along its share of the update. Raises InputError for an update that does not
        fit the model, or of one step on more pictures than told, and for a model without such a layer.
        """
        check_fits(updates, knowledge.model)
        layer = first_layer(knowledge.model, knowledge.shape, who="cocktail parties")
        check_examples(updates, knowledge)
        moved = -updates.moved[layer.weight]
        ranks = gradient_rank(moved - moved.mean(2, keepdim=True), updates.sent[layer.weight], knowledge.noise)
        count = (len(updates), self.restarts, knowledge.examples)
        images = torch.full((*count, *knowledge.shape), torch.nan, dtype=moved.dtype)
        labels = torch.full(count, -1)
        objective = torch.full(count[:2], torch.inf)
        for victim, number in enumerate(range(len(updates)) if victims is None else victims):
            pictures = min(int(ranks[victim]), knowledge.examples)
            if not pictures:
                continue
            whitening, white = whitened(moved[victim].double(), pictures)
            draws = [generator(run, "cocktail party", number, restart) for restart in range(self.restarts)]
            start = torch.stack([torch.randn(pictures, pictures, generator=draw) for draw in draws])
            unmixing, objective[victim] = self.unmix(white.float(), start, knowledge.shape)
            one = updates.select(slice(victim, victim + 1))
            for restart in range(self.restarts):
                rows = unmixing[restart].double() @ whitening
                found = pictures_of(rows, one, layer).view(-1, *knowledge.shape)
                images[victim, restart, :pictures] = found.to(moved.dtype)
                labels[victim, restart, :pictures] = labels_of(shares(found, one, layer), found, one, knowledge, layer)
        return Reconstruction(
            images=images,
            labels=labels,
            objective=objective,
            evaluations=torch.full((len(updates),), self.restarts * knowledge.classes),
            method=(self.name,) * len(updates),
            exact=torch.zeros(len(updates), dtype=torch.bool),
        )

    def unmix(self, white: Tensor, start: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Unmixing matrices [lanes, b, b] of unit rows, and their losses [lanes], from a `start` [lanes, b, b].

        `white` [b, pixels] are the whitened mixtures.
        """
        unmixing = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([unmixing], lr=self.lr)
        for step in range(self.iterations):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.iterations))
            optimizer.zero_grad()
            self.losses(unmixing, white, shape).sum().backward()
            optimizer.step()
        with torch.no_grad():
            return F.normalize(unmixing, dim=2), self.losses(unmixing, white, shape)

    def losses(self, unmixing: Tensor, white: Tensor, shape: Shape) -> Tensor:
        """[lanes] for matrices [lanes, b, b], each row counted at unit length."""
        rows = F.normalize(unmixing, dim=2)
        sources = rows @ white
        loss = -nongaussianity(sources).mean(1)
        if self.total_variation:
            pictures = sources.unflatten(2, shape)
            across, down = (pictures.diff(dim=axis).abs().flatten(1).mean(1) for axis in (-1, -2))
            loss = loss + self.total_variation * (across + down)
        if self.decorrelation and rows.shape[1] > 1:
            pairs = rows.shape[1] * (rows.shape[1] - 1)
            others = 1 - torch.eye(rows.shape[1]).to(rows)
            alike = ((self.sharpness * (rows @ rows.mT).abs()).exp() - 1) * others
            loss = loss + self.decorrelation * alike.sum((1, 2)) / pairs
        return loss


def nongaussianity(sources: Tensor) -> Tensor:
    """|E log cosh s − E log cosh ν| of sources of mean 0 and variance 1, over the last axis: a root of negentropy."""
    size = sources.abs()
    return ((size + torch.log1p((-2 * size).exp())).mean(-1) - math.log(2) - GAUSSIAN).abs()


def whitened(gradient: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """K [components, units] and the centred gradient [units, pixels] times it: rows of mean 0 and variance 1."""
    centred = gradient - gradient.mean(1, keepdim=True)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    size = gradient.shape[1] ** 0.5
    return size * (left[:, :components] / values[:components]).T, size * right[:components]


def pictures_of(rows: Tensor, update: Updates, layer: FirstLayer) -> Tensor:
    """Pictures [b, pixels] in [0, 1] for the unmixing `rows` [b, units] of one victim's gradient."""
    weight, bias = -update.moved[layer.weight][0].double(), -update.moved[layer.bias][0].double()
    scale = rows @ bias
    found = layer.pixels(rows @ weight / scale[:, None])
    return found.clamp(0, 1)


def shares(pictures: Tensor, update: Updates, layer: FirstLayer) -> Tensor:
    """∂Z [units, b]: each picture's part in one victim's gradient, by least squares."""
    weight, bias = -update.moved[layer.weight][0].double(), -update.moved[layer.bias][0].double()
    dark, light = layer.dark.to(weight), layer.light.to(weight)
    entered = dark + (light - dark) * pictures.flatten(1).double()
    known = torch.cat([entered, torch.ones(len(entered), 1).to(entered)], 1)
    parts: Tensor = torch.linalg.lstsq(known.T, torch.cat([weight, bias[:, None]], 1).T).solution.T
    return parts
