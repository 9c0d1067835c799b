"""The Cocktail Party attack: a large batch as independent components of a gradient (Kariyappa et al. 2023).

Each row of a fully connected layer's ∂W is a mixture of the batch's inputs, as each microphone hears a mixture of the
guests. Whitened rows are turned until the components are as far from Gaussian as they can be, by the log cosh
contrast. Here they stay apart by an orthogonal turning, where the paper has a penalty, and the components are
those of the pictures' differences between neighbouring pixels: a difference of mixtures is the mixture of differences,
and edges of two pictures are far less alike than the pictures. Only the turning is searched for, an
`examples`x`examples` matrix, so that batches may be large; the answer is likely, not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.reconstruction.base import Knowledge, Reconstruction, Shape, Updates, check_fits
from attacks.reconstruction.first_layer import first_layer
from attacks.reconstruction.labels import labels_of_pictures
from attacks.reconstruction.rank import check_examples
from attacks.reconstruction.verification import check_one_step, verified
from fl_core.errors import InputError, check_number
from fl_core.seeds import generator
from fl_core.views import Server


@dataclass(frozen=True, kw_only=True)
class CocktailParty:
    """All pictures of a batch behind a fully connected first layer, for one local step.

    `rounds` of symmetric FastICA turn the whitened differences. Sign and length of a component come of its bias
    gradient; where that leaves [0, 1] by far, they are those that span it.
    """

    rounds: int = 300

    name: ClassVar[str] = "cocktail party"
    needs: ClassVar[type[Server]] = Server
    letter: ClassVar[str] = "B"

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, minimum=1, integer=True)

    def run(
        self, updates: Updates, knowledge: Knowledge, *, run: int = 0, victims: Sequence[int] | None = None, **_: Any
    ) -> Reconstruction:
        """Cut to [0, 1]. Raises InputError for another first layer, several steps, a batch that fills the layer."""
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        first = first_layer(knowledge.model, knowledge.shape, "cocktail parties")
        check_examples(updates, knowledge)
        weight, bias = (updates.moved[name].double() for name in (first.weight, first.bias))
        examples = knowledge.examples
        if examples >= min(weight.shape[1:]):
            raise InputError(
                f"the cocktail party attack needs a layer that is wider than the batch; {first.weight} is "
                f"{weight.shape[1]}x{weight.shape[2]} and the batch {examples}"
            )
        whitened, whitening = whiten(_edges(weight, knowledge.shape), examples)
        numbers = range(len(updates)) if victims is None else victims
        start = torch.stack(
            [
                torch.randn(examples, examples, generator=generator(run, "unmixing", one), dtype=torch.float64)
                for one in numbers
            ]
        )
        unmixing = fast_ica(whitened, start, self.rounds)
        rows = unmixing @ whitening  # [victims, examples, outputs]
        pixels = first.pixels(_scaled(rows @ weight, (rows @ bias.unsqueeze(2)).squeeze(2), first.dark, first.light))
        images = pixels.clamp(0, 1).unflatten(2, knowledge.shape).to(updates.moved[first.weight])
        labels = labels_of_pictures(updates, knowledge, images)
        return verified(updates, knowledge, images, labels, self.name, torch.zeros(len(updates)))


def _edges(mixtures: Tensor, shape: Shape) -> Tensor:
    """Horizontal and vertical differences [victims, rows, differences] of mixtures [victims, rows, pixels]."""
    pictures = mixtures.unflatten(2, shape)
    return torch.cat([pictures.diff(dim=axis).flatten(2) for axis in (-1, -2)], 2)


def whiten(mixtures: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """White mixtures [victims, components, pixels] of mean 0 and covariance 1, and what made them of the rows.

    `mixtures` is [victims, rows, pixels]; the second is [victims, components, rows].
    """
    centred = mixtures - mixtures.mean(2, keepdim=True)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    lengths = values[:, :components].clamp(min=1e-300) / mixtures.shape[2] ** 0.5
    whitening = left[:, :, :components].transpose(1, 2) / lengths.unsqueeze(2)
    return whitening @ centred, whitening


def fast_ica(whitened: Tensor, start: Tensor, rounds: int) -> Tensor:
    """Symmetric FastICA with tanh (Hyvärinen 1999): unmixing matrices [victims, components, components], orthogonal."""
    turned = _orthogonal(start)
    for _ in range(rounds):
        bent = (turned @ whitened).tanh()
        turned = _orthogonal(
            bent @ whitened.transpose(1, 2) / whitened.shape[2] - (1 - bent.square()).mean(2, keepdim=True) * turned
        )
    return turned


def _orthogonal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


def _scaled(mixed: Tensor, slope: Tensor, dark: Tensor, light: Tensor) -> Tensor:
    """Inputs [victims, examples, pixels] of components of unknown sign and length.

    A component's bias gradient is that sign and length where it is one picture's. Where the quotient leaves the range
    of pixels by half of it or more it is not, and the component is laid between dark and light, its mean on the dark
    side as most pictures have it.
    """
    quotient = mixed / torch.where(slope == 0, torch.inf, slope).unsqueeze(2)
    pixels = (quotient - dark) / (light - dark)
    outside = (pixels - pixels.clamp(0, 1)).abs().mean(2, keepdim=True)
    low, high = mixed.amin(2, keepdim=True), mixed.amax(2, keepdim=True)
    spanned = (mixed - low) / (high - low).clamp(min=1e-300)
    spanned = torch.where(spanned.mean(2, keepdim=True) > 0.5, 1 - spanned, spanned)
    return dark + torch.where(outside < 0.1, pixels, spanned) * (light - dark)
