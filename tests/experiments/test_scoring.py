"""Rows of a cell: who is asked about, what cannot be supported, and what holds together."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.metrics import balanced_accuracy
from experiments import scoring
from tests.experiments.test_replicas import cell


def rows_of(made, scores, **wanted):
    found = scoring.membership(made, scores, "lira")["rows"]
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def test_groups_are_canaries_the_rare_example_and_the_others_and_split_by_class_and_client(here):
    made = cell("rarity={label:7,client:1}")
    groups, parts = scoring.groups(made), scoring.breakdown(made)
    assert list(groups) == ["canary", "rare", "ordinary"]
    assert groups["rare"].sum() == 1
    assert (sum(mask.astype(int) for mask in groups.values()) == made.candidates.numpy().astype(int)).all()
    for kind in ("class", "client"):
        those = [mask for name, mask in parts.items() if name.startswith(kind)]
        assert (sum(mask.astype(int) for mask in those) == groups["ordinary"].astype(int)).all()
    about = cell("about=2")
    assert [name for name in scoring.breakdown(about) if name.startswith("client")] == ["client 2"]


def test_a_rate_that_the_non_members_cannot_support_has_no_number_and_says_how_many_it_needs(here):
    made = cell("attack.fprs=[1e-5,0.05]")
    members = made.targets.members.numpy()
    scores = np.random.default_rng(0).normal(size=members.shape) + members
    (row,) = rows_of(made, scores, group="ordinary", metric="tpr_at_1e-05")
    outside = int((~members & scoring.groups(made)["ordinary"]).sum())
    assert row["value"] is None
    assert row["note"] == f"needs ≥ 100,000 non-members, has {outside}"
    (row,) = rows_of(made, scores, group="ordinary", metric="tpr_at_0.05")
    assert row["low"] <= row["value"] <= row["high"]
    (row,) = rows_of(made, scores, group="ordinary", metric="balanced_accuracy")
    mine = scoring.groups(made)["ordinary"]
    assert row["value"] == pytest.approx(balanced_accuracy(scores, members, mine).mean())


def test_an_audit_of_too_few_canaries_says_so_and_several_share_the_error(here, monkeypatch):
    few = cell("attack.audit_fraction=0.05")
    found = scoring.audit(few, "lira", None)
    assert found["epsilon"] is None
    assert "too few canaries" in found["note"]
    assert "fair coin" in scoring.audit(cell("membership=0.3"), "lira", None)["note"]
    assert "fair coin" in scoring.audit(cell("design=pairs"), "lira", None)["note"]

    two = cell(
        "attack.audit_fraction=0.5", "attack.audit_with=[lira,other]",
        "+attack.membership.other={_target_:attacks.membership.lira.LiRA}",
    )  # fmt: skip

    class Blank:
        def run(self, attack, target, shadows):
            return np.random.default_rng(target).normal(size=len(two.targets.pool))

    monkeypatch.setattr(scoring.Gallery, "of", lambda *_: Blank())
    assert scoring.audit(two, "lira", None)["confidence"] == pytest.approx(0.975)
