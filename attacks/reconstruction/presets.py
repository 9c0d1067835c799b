"""The published attacks, as settings of one. Each takes changes by keyword, as `inverting_gradients(restarts=8)`."""

from __future__ import annotations

from typing import Any

from attacks.reconstruction.gradient_matching import GradientMatching
from attacks.reconstruction.objectives import Distance
from attacks.reconstruction.parametrisation import DeepImagePrior


def dlg(**changes: Any) -> GradientMatching:
    """Deep leakage from gradients (Zhu et al. 2019): squared distance, L-BFGS, labels as variables, no prior."""
    return _made(
        changes,
        name="DLG", letter="A", optimizer="lbfgs", lr=1.0, iterations=300, boxed=False, labels="soft",
        distance=Distance(measure="squared"), total_variation=0.0,
    )  # fmt: skip


def idlg(**changes: Any) -> GradientMatching:
    """Improved deep leakage (Zhao et al. 2020): DLG with the label read off the update first."""
    return dlg(**({"name": "iDLG", "labels": "inferred"} | changes))


def inverting_gradients(**changes: Any) -> GradientMatching:
    """Inverting gradients (Geiping et al. 2020): cosine, total variation, Adam on the sign, pixels in their range."""
    return _made(changes, name="inverting gradients", letter="B", total_variation=1e-3)


def layer_weighted(**changes: Any) -> GradientMatching:
    """Inverting gradients with later layers counting more (after Geng et al. 2021)."""
    return _made(
        changes, name="layer-weighted", letter="B", total_variation=1e-3, distance=Distance(weighting="rising")
    )


def adaptive(**changes: Any) -> GradientMatching:
    """Inverting gradients by an attacker who knows the defence.

    It weighs variables by signal over noise, clips its own guess where the length counts, and leaves out what a pruning
    or a rounding set to zero.
    """
    distance = Distance(weighting="snr", clips=True, support=True)
    return _made(changes, name="adaptive", letter="C", total_variation=1e-3, distance=distance)


def grad_inversion(**changes: Any) -> GradientMatching:
    """GradInversion (Yin et al. 2021): also moments before batch normalisation, and restarts that agree."""
    return _made(
        changes,
        name="GradInversion", letter="E", total_variation=1e-3, length=1e-4, batch_norm=1e-2, group=1e-2, part=50,
    )  # fmt: skip


def deep_image_prior(**changes: Any) -> GradientMatching:
    """Cosine matching by the weights of an untrained network that paints the picture (Ulyanov et al. 2018)."""
    return _made(
        changes,
        name="deep image prior", letter="B", parametrisation=DeepImagePrior(), signed=False, lr=1e-2,
        total_variation=1e-4,
    )  # fmt: skip


def local_steps(**changes: Any) -> GradientMatching:
    """FedAvg updates over several epochs, whose order need not be known (Dimitrov et al. 2022)."""
    return _made(
        changes, name="simulated local steps", letter="C", total_variation=1e-3, every_epoch=1.0,
        distance=Distance(measure="cosine"),
    )  # fmt: skip


def prior_alone(**changes: Any) -> GradientMatching:
    """The prior with no update: what its pictures score is no leakage."""
    return _made(changes, name="prior alone", letter="A", distance=None, total_variation=1e-3)


def _made(changes: dict[str, Any], **settings: Any) -> GradientMatching:
    return GradientMatching(**(settings | changes))
