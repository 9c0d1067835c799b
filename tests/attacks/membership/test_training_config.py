"""The attacks of conf/attack/training.yaml: each can be made and run, and no two share a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import conf
from attacks.membership.gradient_ascent import GradientAscent
from attacks.membership.observed import KINDS
from attacks.membership.reading import narrow
from tests.training_signals import by_hand, last_of

FOLDER = Path(conf.__file__).parent / "attack"
TRAINING: Any = OmegaConf.load(FOLDER / "training.yaml")


@pytest.mark.parametrize("key", list(TRAINING.membership))
def test_each_attack_can_be_made_and_scores_what_its_view_shows(key: str):
    attack = instantiate(TRAINING.membership[key])
    assert attack.needs in KINDS.values()
    if isinstance(attack, GradientAscent):  # whose signals only its own server has
        return
    signals, members, owners = by_hand(9, 80, gain=1.0, seed=0, rounds=2)
    target, knowledge = last_of(signals, members, owners)
    scores = attack.run(target, knowledge)
    assert scores.shape == (80,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert narrow(target, attack.needs).replicas == 1


def test_no_two_attacks_share_a_name():
    names = [instantiate(attack).name for attack in TRAINING.membership.values()]
    assert len(set(names)) == len(names)


def test_all_but_the_attacks_is_as_in_the_standard_group():
    standard: Any = OmegaConf.load(FOLDER / "standard.yaml")
    assert {key: value for key, value in TRAINING.items() if key != "membership"} == {
        key: value for key, value in standard.items() if key != "membership"
    }
