"""Whether an answer explains the update: what an attacker can check by itself, without the truth."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call

from attacks.reconstruction.base import Knowledge, Reconstruction, Updates
from fl_core.errors import InputError
from fl_core.models import cross_entropy


def check_one_step(knowledge: Knowledge, who: str) -> None:
    """Raise InputError unless an update is one local step."""
    if knowledge.steps * knowledge.epochs != 1:
        raise InputError(
            f"{who} needs an update of one local step, and was told of {knowledge.steps * knowledge.epochs}; use an "
            "attack that simulates local training"
        )


def residual(updates: Updates, knowledge: Knowledge, images: Tensor, labels: Tensor) -> Tensor:
    """How far each update is from what these pictures would have caused in one local step, over its length [victims].

    `images` [victims, examples, channels, height, width] in [0, 1], `labels` [victims, examples]; in float64. Without a
    learning rate, the distance to the nearest positive multiple. A victim with a picture of NaN or a label below 0
    has inf.
    """
    model = copy.deepcopy(knowledge.model).double().train()
    trained = [name for name, _ in model.named_parameters() if name in updates.moved]
    found = []
    for victim in range(len(updates)):
        if not torch.isfinite(images[victim]).all() or (labels[victim] < 0).any():
            found.append(torch.inf)
            continue
        sent = {name: value[victim].double().requires_grad_(name in trained) for name, value in updates.sent.items()}
        loss = cross_entropy(functional_call(model, sent, (images[victim].double(),)), labels[victim]).mean()
        grads = torch.autograd.grad(loss, [sent[name] for name in trained], allow_unused=True, materialize_grads=True)
        caused = torch.cat([grad.flatten() for grad in grads])
        seen = torch.cat([-updates.moved[name][victim].double().flatten() for name in trained])
        factor = knowledge.lr
        if factor is None:
            factor = max(0.0, (seen @ caused / (caused @ caused).clamp(min=1e-300)).item())
        found.append(((seen - factor * caused).norm() / seen.norm()).item())
    return torch.tensor(found, dtype=torch.float64)


def tolerance(updates: Updates) -> Tensor:
    """The residual [victims], float64, up to which an answer explains an update: what rounding may leave.

    1e-9 where updates are float64 and 1e-4 in float32 for the gradient's own rounding, and four times what is lost as
    the model that came back less the one that was sent, a difference of near equals; at most 1e-2.
    """

    def length(tree: dict[str, Tensor]) -> Tensor:
        return torch.stack([tree[name].double().flatten(1).norm(dim=1) for name in updates.moved]).norm(dim=0)

    dtype = next(iter(updates.moved.values())).dtype
    own = 1e-9 if dtype == torch.float64 else 1e-4
    lost = torch.finfo(dtype).eps * length(updates.sent) / length(updates.moved)
    return (own + 4 * lost).clamp(max=1e-2)


def verified(
    updates: Updates, knowledge: Knowledge, images: Tensor, labels: Tensor, name: str, evaluations: Tensor
) -> Reconstruction:
    """One restart's answer, checked: `images` and `labels` as `residual` takes them, `evaluations` [victims] so far."""
    missed = residual(updates, knowledge, images, labels)
    return Reconstruction(
        images=images.unsqueeze(1),
        labels=labels.unsqueeze(1),
        objective=missed.unsqueeze(1),
        evaluations=evaluations + torch.isfinite(missed).to(evaluations),
        method=(name,) * len(updates),
        exact=missed <= tolerance(updates).to(missed),
    )
