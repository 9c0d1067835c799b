"""No gradient leaves longer than the clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defenses.clipping import clip_factors, norms

SHAPES = {"weight": (3, 2), "bias": (3,)}
ROUNDING = 1 + 1e-6


def tree(seed: int, scale: float) -> dict[str, torch.Tensor]:
    """Gradients [2 lanes, 5 examples, ...] with lengths over three orders of magnitude around `scale`."""
    draw = torch.Generator().manual_seed(seed)
    sizes = scale * 10 ** (3 * torch.rand(2, 5, generator=draw) - 1.5)
    return {
        name: torch.randn(2, 5, *shape, generator=draw) * sizes.view(2, 5, *[1] * len(shape))
        for name, shape in SHAPES.items()
    }


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten(2) for value in gradients.values()], 2)


def test_a_norm_is_over_all_leaves_together():
    gradients = {"a": torch.tensor([[[3.0, 0.0]]]), "b": torch.tensor([[[[4.0]]]])}
    assert norms(gradients, 2).tolist() == [[5.0]]
    gradients = tree(0, 1.0)
    torch.testing.assert_close(norms(gradients, 2), flat(gradients).norm(dim=2))
    torch.testing.assert_close(norms(gradients, 1), flat(gradients).flatten(1).norm(dim=1))


@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(-12, 12).map(lambda exponent: 10.0**exponent),
    clip=st.floats(-6, 6).map(lambda exponent: 10.0**exponent),
)
def test_clipped_norms_never_exceed_the_clip_and_short_gradients_stay(seed, scale, clip):
    gradients = tree(seed, scale)
    lengths = norms(gradients, 2)
    factors = clip_factors(lengths, clip)
    clipped = {name: value * factors.view(2, 5, *[1] * (value.dim() - 2)) for name, value in gradients.items()}
    assert (flat(clipped).double().norm(dim=2) <= clip * ROUNDING).all()
    short = lengths < clip
    torch.testing.assert_close(flat(clipped)[short], flat(gradients)[short], rtol=1e-6, atol=0)
    long = lengths > clip
    torch.testing.assert_close(norms(clipped, 2)[long], torch.full_like(lengths[long], clip), rtol=1e-5, atol=0)


def test_a_parameter_may_be_one_number():
    # A learned scale, say: its per-example gradients have no axis of their own.
    gradients = {"a": torch.tensor([[[3.0, 0.0]]]), "scale": torch.tensor([[4.0]])}
    assert norms(gradients, 2).tolist() == [[5.0]]


def test_a_zero_gradient_stays_zero():
    assert clip_factors(torch.zeros(3), 0.1).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("clip", [1e-6, 1.0, 1e6])
def test_a_gradient_too_long_for_a_norm_counts_for_nothing(clip: float):
    assert clip_factors(norms({"x": torch.full((1, 2), 1e30)}, 1), clip).tolist() == [0.0]
