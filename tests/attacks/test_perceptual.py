"""LPIPS is computed only where everything for it is at hand, and says what is not. The network here is a stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from attacks import perceptual
from fl_core.errors import InputError

PICTURES = np.random.default_rng(0).random((2, 3, 40, 32))


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A package `lpips` whose distance is the mean difference, and an empty cache of weights."""

    class Stand:
        seen: ClassVar[list[torch.Tensor]] = []

        def __init__(self, net, verbose):
            assert net == "alex"

        def eval(self):
            return self

        def __call__(self, one, other):
            self.seen += [one, other]
            return (one - other).abs().mean().reshape(1, 1, 1, 1)

    monkeypatch.setattr(perceptual, "find_spec", lambda name: name == "lpips" or None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Stand))
    perceptual._network.cache_clear()
    Stand.seen.clear()
    yield SimpleNamespace(checkpoints=tmp_path / "checkpoints", seen=Stand.seen)
    perceptual._network.cache_clear()


def test_without_the_package_it_is_absent_and_says_so(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    assert "the package lpips is not installed" in perceptual.missing()
    with pytest.raises(InputError, match="not installed"):
        perceptual.lpips(PICTURES, PICTURES)


def test_without_the_weights_it_is_absent_and_nothing_is_fetched(installed, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("fetched"))
    assert "alexnet-owt" in perceptual.missing()
    with pytest.raises(InputError, match="nothing is fetched"):
        perceptual.lpips(PICTURES, PICTURES)


def test_with_both_the_network_gets_three_channels_in_minus_one_to_one_large_enough_for_its_layers(installed):
    installed.checkpoints.mkdir()
    (installed.checkpoints / "alexnet-owt-7be5be79.pth").touch()
    assert perceptual.missing() == ""
    grey = np.full_like(PICTURES, 0.5)
    np.testing.assert_allclose(perceptual.lpips(grey + 0.25, grey), [0.5, 0.5], atol=1e-6)
    assert installed.seen[0].shape == (1, 3, 40, 32)
    digits = torch.zeros(1, 1, 8, 10)
    np.testing.assert_allclose(perceptual.lpips(digits + 1, digits), [2.0], atol=1e-6)
    assert installed.seen[-1].shape == (1, 3, 32, 40)
    with pytest.raises(InputError, match="1 or 3"):
        perceptual.lpips(np.zeros((1, 2, 8, 8)), np.zeros((1, 2, 8, 8)))
