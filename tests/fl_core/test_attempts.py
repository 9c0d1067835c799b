"""Turns that lack somebody are let go, and the next cohort is asked."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_core.attempts import ATTEMPTS, reaching
from fl_core.devices import Devices
from fl_core.errors import InputError
from fl_core.fleet import Ideal, Synchronous, Turn, Workload, log_line
from fl_core.participation import Uniform

LOSING = Synchronous(Devices(dropout_before=0.2, dropout_after=0.2))
WORK = Workload(clients=9, steps=torch.arange(1, 10), step_examples=1.0, model_bytes=10_000)


def turns(run: int, count: int, fleet: Synchronous | Ideal = LOSING) -> list[Turn]:
    return list(itertools.islice(fleet.turns(Uniform(5), WORK, run, 0), count))


def too_few(least: int, turn: Turn) -> str | None:
    return None if len(turn.clients) >= least else f"{len(turn.clients)} came"


@given(run=st.integers(0, 10**6), least=st.integers(0, 4))
def test_every_turn_of_the_fleet_is_a_round_or_an_attempt_at_one_in_order(run, least):
    whole = turns(run, 40)
    played = list(reaching_all(whole, least))
    spent = [one for turn in played for one in (*turn.aborted, turn)]
    assert [one.attempt for one in spent] == list(range(len(spent)))
    for one, fleets in zip(spent, whole, strict=False):
        for name in ("clients", "work", "factors", "asked"):
            assert torch.equal(getattr(one, name), getattr(fleets, name))
        assert (one.lost, one.began, one.ended) == (fleets.lost, fleets.began, fleets.ended), "the clock runs on"
    for round, turn in enumerate(played):
        assert turn.round == round
        assert turn.oldest == round + 1
        assert (turn.versions == round).all()
        assert len(turn.clients) >= least
        assert all(len(one.clients) < least and one.round == round and not one.aborted for one in turn.aborted)


def reaching_all(whole: list[Turn], least: int) -> list[Turn]:
    """All rounds that some turns make; the attempts at the end lead nowhere."""
    found = []
    try:
        for turn in reaching(iter(whole), lambda one: too_few(least, one)):
            found.append(turn)
    except InputError:
        pass
    return found


def test_turns_that_lack_nothing_are_the_fleet_s_own():
    for fleet in (LOSING, Ideal()):
        whole = turns(0, 10, fleet)
        assert list(reaching(iter(whole), lambda turn: too_few(0, turn))) == whole


def test_a_round_that_never_has_enough_is_given_up_in_one_line_that_says_what_is_wrong():
    with pytest.raises(InputError, match=f"round 1 was given up after {ATTEMPTS} cohorts in a row: 5 came") as refused:
        next(reaching(Ideal().turns(Uniform(5), WORK, 0, 0), lambda turn: too_few(6, turn)))
    assert "\n" not in str(refused.value)


def test_the_log_names_the_attempts_that_were_let_go():
    played = reaching_all(turns(3, 60), 4)
    (first, *_) = [turn for turn in played if turn.aborted]
    line = json.loads(json.dumps(log_line(first)))
    assert [one["asked"] for one in line["aborted"]] == [one.asked.tolist() for one in first.aborted]
    assert line["aborted"][0]["ended"] <= line["began"]
    (plain, *_) = [turn for turn in played if not turn.aborted]
    assert "aborted" not in log_line(plain)
