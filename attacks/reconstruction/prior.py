"""What public pictures say about a noisy one: the best linear estimate, which no noise makes worse than their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LinearPrior:
    """Mean [pixels] of public pictures, and the `axes` [pixels, pixels] and `variances` [pixels] of their covariance.

    All float64; the variances rise.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor

    def estimate(self, noisy: Tensor, deviation: Tensor) -> Tensor:
        """Pictures [pictures, ...] seen with independent noise of `deviation` [pictures] in each pixel, estimated.

        Along each axis of variance v the distance from the mean shrinks to v/(v + deviation²) of itself (Wiener). No
        noise leaves a picture as it is; a deviation of inf, the mean.
        """
        spread = deviation.double()[:, None]
        along = (noisy.flatten(1).double() - self.mean) @ self.axes
        kept = self.variances / (self.variances + spread**2)
        shrunk = torch.where(torch.isinf(spread), 0.0, along * kept) @ self.axes.T
        found: Tensor = (self.mean + shrunk).view(noisy.shape).to(noisy)
        return torch.where(deviation.view(-1, *[1] * (noisy.dim() - 1)) == 0, noisy, found)


def linear_prior(public: Tensor) -> LinearPrior:
    """The prior that `public` pictures [pictures, ...] give; InputError for fewer than two."""
    if len(public) < 2:
        raise InputError("a prior needs at least two public pictures")
    pixels = public.flatten(1).double()
    variances, axes = torch.linalg.eigh(torch.cov(pixels.T))
    # So many pictures do not rule out a variance of about this size along an axis on which none of them differ.
    unseen = variances.mean() / len(public)
    return LinearPrior(mean=pixels.mean(0), axes=axes, variances=variances.clamp(min=0) + unseen)
