"""The group attack=released: every attack on a released model, with its options."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from attacks.base import MembershipAttack
from attacks.membership.observed import Signals
from experiments.cell import make
from fl_core.errors import InputError
from tests.oracles.attacks import EVERY
from tests.oracles.membership import problem

FOLDER = Path(conf.__path__[0]) / "attack"


def load(name: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    return dict(found)


RELEASED = load("released")


@pytest.mark.parametrize("key", RELEASED["membership"])
def test_each_entry_is_an_attack_that_scores(key: str):
    attack: MembershipAttack = make(RELEASED["membership"][key])
    assert attack.needs is Signals
    one = problem(examples=150, shadows=6)
    assert attack.run(one.target, one.knowledge).shape == (150,)


def test_names_are_distinct():
    names = [make(one).name for one in RELEASED["membership"].values()]
    assert len(set(names)) == len(names)


def test_every_kind_of_attack_is_listed_with_every_option_of_its_own():
    written: dict[type, set[str]] = {}
    for one in RELEASED["membership"].values():
        kind = type(make(one))
        written[kind] = written.get(kind, set()) | (set(one) - {"_target_"})
    assert set(written) == {type(attack) for attack in EVERY}
    for kind, options in written.items():
        # A loss threshold's statistic is its name; rows are for those who run out of memory.
        left_out = {"statistic", "max_rows"} if "Threshold" in kind.__name__ else set()
        assert options >= {field.name for field in fields(kind)} - left_out, kind


def test_a_misspelt_option_is_refused():
    with pytest.raises(InputError, match="did you mean 'references'"):
        make({**RELEASED["membership"]["rmia_offline"], "reference": 4})
