"""Whole batches read off a fully connected layer before a ReLU, exactly (Dimitrov et al. 2024, "SPEAR").

Over a batch of b pictures x_i the layer's gradients are ∂W = ∂Z·Xᵀ and ∂b = ∂Z·1, where column i of ∂Z [units, b] is
the gradient of picture i before the ReLU. So [∂W ∂b] has rank b and factors into L·R in b dimensions, in which ∂Z = L·Q
and [X 1]ᵀ = Q⁻¹·R for an unknown Q (theorem 3.1). The ReLU makes ∂Z zero wherever a unit is off, which is what pins Q
down: on b − 1 rows of L where picture i is off everywhere, the null space is q_i (section 3.3). Random rows are tried
until b directions are found; the last column of R, which has to become 1, fixes their scales.

The chance that b − 1 random rows fit one of the pictures is about b/2^(b − 1), so that the work doubles with each
picture (section 4). Pictures are alike, though, in which units they leave off: rows that are off for the pictures found
so far are drawn more often here, which the paper does not do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates, check_fits
from attacks.reconstruction.first_layer import FirstLayer, first_layer
from attacks.reconstruction.rank import check_examples, gradient_rank
from attacks.reconstruction.sparse_directions import Mixture, find_directions
from attacks.reconstruction.verification import check_one_step, verified
from fl_core.errors import check_number
from fl_core.models import cross_entropy
from fl_core.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Spear:
    """For one local step on a batch, by a model whose first layer is fully connected, with a bias, before a ReLU.

    At most `samples` sets of rows are tried for each update, `chunk` of them at once. An update for which they do not
    give as many directions as there are pictures has no answer.
    """

    samples: int = 2**21
    chunk: int = 8192

    name: ClassVar[str] = "SPEAR"
    letter: ClassVar[str] = "B"

    def __post_init__(self) -> None:
        check_number("samples", self.samples, minimum=1, integer=True)
        check_number("chunk", self.chunk, minimum=1, integer=True)

    def run(
        self,
        updates: Updates,
        knowledge: Knowledge,
        *,
        run: int = 0,
        victims: Sequence[int] | None = None,
        **_: Any,
    ) -> Reconstruction:
        """Attack each victim's update; `run` and the `victims`' numbers seed which rows are tried.

        The labels come with the pictures, each the one whose gradient is the picture's column of ∂Z. Raises InputError
        for an update that does not fit the model, or of several local steps, or of more pictures than told, and for a
        model without such a layer.
        """
        check_fits(updates, knowledge.model)
        check_one_step(knowledge, self.name)
        layer = first_layer(knowledge.model, knowledge.shape, who="attacks like SPEAR")
        check_examples(updates, knowledge)
        numbers = range(len(updates)) if victims is None else victims
        dtype = updates.moved[layer.weight].dtype
        images = torch.full((len(updates), knowledge.examples, *knowledge.shape), torch.nan, dtype=dtype)
        labels = torch.full((len(updates), knowledge.examples), -1)
        spent = torch.zeros(len(updates), dtype=torch.long)
        for victim, number in enumerate(numbers):
            draw = generator(run, "spear", number)
            found = self._batch(updates.select(slice(victim, victim + 1)), knowledge, layer, draw)
            if found is None:
                continue
            entered, columns = found
            pictures = layer.pixels(entered).view(-1, *knowledge.shape)
            one = updates.select(slice(victim, victim + 1))
            images[victim, : len(pictures)] = pictures.to(dtype)
            labels[victim, : len(pictures)] = labels_of(columns, pictures, one, knowledge, layer)
            spent[victim] = knowledge.classes
        return verified(updates, knowledge, images, labels, self.name, spent)

    def _batch(
        self, update: Updates, knowledge: Knowledge, layer: FirstLayer, draw: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """What entered the layer [pictures, pixels] and ∂Z [units, pictures] of one victim; None where neither came."""
        moved, bias = -update.moved[layer.weight], -update.moved[layer.bias]
        # Pictures that the layer cannot tell apart are one to it.
        rank = int(gradient_rank(torch.cat([moved, bias.unsqueeze(2)], 2), update.sent[layer.weight], knowledge.noise))
        pictures = min(rank, knowledge.examples)
        units, pixels = moved.shape[1:]
        if not 0 < pictures < min(units, pixels + 1):  # of rank 0 is a layer that did not move, as one that was pruned
            return None
        mixture = Mixture.of(torch.cat([moved[0], bias[0, :, None]], 1).double(), pictures)
        weight, threshold = update.sent[layer.weight][0].double(), update.sent[layer.bias][0].double()
        found = find_directions(mixture, weight, threshold, samples=self.samples, chunk=self.chunk, draw=draw)
        return None if found is None else mixture.separated(found)


def labels_of(columns: Tensor, pictures: Tensor, update: Updates, knowledge: Knowledge, layer: FirstLayer) -> Tensor:
    """The label [pictures] of each picture: that whose gradient of the layer's bias is along its column of ∂Z.

    `columns` [units, pictures], with the gradient's own sign.
    """
    model = copy.deepcopy(knowledge.model).double().train()
    sent = {name: value[0].double() for name, value in update.sent.items()}

    def loss(bias: Tensor, picture: Tensor, label: Tensor) -> Tensor:
        scores = functional_call(model, sent | {layer.bias: bias}, (picture.unsqueeze(0),))
        return cross_entropy(scores, label.unsqueeze(0)).sum()

    labels = torch.arange(knowledge.classes, device=pictures.device)
    each = vmap(vmap(grad(loss), (None, None, 0)), (None, 0, None))
    caused = each(sent[layer.bias], pictures.double(), labels)  # [pictures, classes, units]
    along = torch.einsum("pcu,up->pc", caused, columns) / caused.norm(dim=2).clamp(min=1e-300)
    best: Tensor = along.argmax(1)
    return best
