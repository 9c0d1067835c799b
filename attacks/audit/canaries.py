"""Canaries, from what a careless client might hold to the worst that the definition of privacy allows.

Examples that train like any other: mislabelled ones, blank ones, and ones made to stand out (`orthogonal`). Gradients
that no example need have: a `dirac`, all weight on one coordinate. The definition protects whoever sends such a
gradient too, and against it an audit is as strong as it can be.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad, vmap

from fl_core.data import ImageSet
from fl_core.errors import InputError, check_number
from fl_core.models import ClassificationLosses
from fl_core.optimizers import Tree
from fl_core.seeds import generator


def mislabelled(data: ImageSet, seed: int) -> ImageSet:
    """The same pictures, each with a label drawn from the wrong ones. Raises InputError for a single class."""
    classes = len(data.classes)
    if classes < 2:
        raise InputError(
            "a mislabelled canary needs a wrong label, and the data have one class; use data of two or more"
        )
    shift = torch.randint(1, classes, (len(data),), generator=generator(seed, "mislabelled canaries"))
    return data.relabel((data.labels + shift.to(data.labels.device)) % classes)


def blank(like: ImageSet, count: int) -> ImageSet:
    """`count` pictures of one grey each, from white to black, with the classes of `like` in turn for labels."""
    check_number("the number of blank canaries", count, minimum=1, integer=True)
    levels = torch.linspace(1, 0, count).view(-1, 1, 1, 1)
    labels = torch.arange(count) % len(like.classes)
    return ImageSet(levels.expand(count, *like.shape).contiguous(), labels, like.classes)


def quiet_coordinates(gradients: Tensor, count: int) -> Tensor:
    """The `count` coordinates [count] in which reference `gradients` [examples, d] have the least energy.

    Raises InputError for more coordinates than there are.
    """
    check_number("the number of coordinates", count, minimum=1, maximum=gradients.shape[-1], integer=True)
    return gradients.square().sum(0).argsort(stable=True)[:count]


def dirac(coordinates: Tensor, dimension: int, length: float) -> Tensor:
    """Gradients [canaries, dimension] with all of their `length` on one of `coordinates` each, so orthogonal.

    Raises InputError for a length that is not positive. Source: Nasr et al. 2023, "Tight Auditing of Differentially
    Private Machine Learning".
    """
    check_number("the length of a crafted gradient", length, above=0)
    found = torch.zeros(len(coordinates), dimension)
    found[torch.arange(len(coordinates)), coordinates] = length
    return found


def orthogonal(
    losses: ClassificationLosses,
    models: Tree,
    start: ImageSet,
    references: Tensor,
    *,
    clip_norm: float,
    steps: int = 100,
    lr: float = 0.05,
) -> ImageSet:
    """Pictures, from `start` on, whose gradients are as long as the clip and orthogonal to those of others.

    Descends by Adam, over pixels in [0, 1], on the mean over `models` [models, ...] and `references` [models, examples,
    d] of ⟨g, rᵢ⟩² + max(clip_norm − ‖g‖, 0)², with rᵢ a reference's direction, so that neither term outweighs the
    other for the length of the references alone. d runs over the variables in the order of `flat`. The canaries are
    also held orthogonal to one another. Source: Maddock, Sablayrolles and Stock 2023, "CANIFE", equation 1 and
    Algorithm 1.
    """
    check_number("clip_norm", clip_norm, above=0)
    check_number("steps", steps, minimum=1, integer=True)

    def loss(variables: Tree, image: Tensor, label: Tensor) -> Tensor:
        return losses(variables, image[None], label[None])[0]

    each = vmap(vmap(grad(loss), in_dims=(None, 0, 0)), in_dims=(0, None, None))
    directions = references / references.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    others = ~torch.eye(len(start), dtype=torch.bool)
    images = start.images.clone().requires_grad_()
    adam = torch.optim.Adam([images], lr=lr)
    for _ in range(steps):
        gradients = flat(each(models, images, start.labels), 2)  # [models, canaries, d]
        overlap = torch.einsum("mcd,mrd->mcr", gradients, directions).square().mean()
        lengths = gradients.norm(dim=-1)
        short = (clip_norm - lengths).clamp(min=0).square().mean()
        among = torch.einsum("mcd,med->mce", gradients, gradients / lengths[..., None].detach().clamp(min=1e-12))
        adam.zero_grad()
        (overlap + short + among[:, others].square().sum() / math.prod(lengths.shape)).backward()
        adam.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return ImageSet(images.detach(), start.labels, start.classes)


def flat(tree: Tree, lead: int) -> Tensor:
    """All variables in one row [..., d], in the order of their names, after the first `lead` axes."""
    return torch.cat([tree[name].flatten(lead) for name in sorted(tree)], lead)


def unflattened(rows: Tensor, like: Tree) -> Tree:
    """The inverse of `flat` for `rows` [n, d], shaped as the variables `like` [...]: [n, ...] each."""
    names = sorted(like)
    parts = rows.split([like[name].numel() for name in names], -1)
    return {name: part.reshape(len(rows), *like[name].shape) for name, part in zip(names, parts, strict=True)}
