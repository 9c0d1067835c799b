"""The reconstruction attacks that studies compare, by name, each with a budget of restarts and iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attacks.reconstruction import presets
from attacks.reconstruction.base import Reconstruction
from attacks.reconstruction.cocktail import CocktailParty
from attacks.reconstruction.fully_connected import FullyConnected
from attacks.reconstruction.pipeline import Pipeline
from attacks.reconstruction.recursive import RecursiveGradientAttack
from attacks.reconstruction.spear import Spear

ATTACKS: dict[str, Callable[..., Any]] = {
    "DLG": presets.dlg,
    "iDLG": presets.idlg,
    "inverting gradients": presets.inverting_gradients,
    "layer-weighted": presets.layer_weighted,
    "adaptive": presets.adaptive,
    "GradInversion": presets.grad_inversion,
    "deep image prior": presets.deep_image_prior,
    "fully connected layer": lambda **_: FullyConnected(),
    "SPEAR": lambda **_: Spear(samples=2**16),  # seconds a batch
    "R-GAP": lambda **_: RecursiveGradientAttack(),
    "cocktail party": lambda **_: CocktailParty(),
    "exact first": lambda **budget: Pipeline(fallback=presets.inverting_gradients(**budget)),
}
"""Each is called with `restarts` and `iterations`; an exact one has no use for them."""


def blank(truth: Tensor) -> Reconstruction:
    """No answer for any picture [victims, pictures, ...]: what an attack has found that cannot be mounted."""
    victims, pictures = truth.shape[:2]
    return Reconstruction(
        images=torch.full_like(truth, torch.nan).unsqueeze(1),
        labels=torch.full((victims, 1, pictures), -1),
        objective=torch.full((victims, 1), torch.inf),
        evaluations=torch.zeros(victims, dtype=torch.long),
        method=("none",) * victims,
        exact=torch.zeros(victims, dtype=torch.bool),
    )
