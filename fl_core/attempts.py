"""Rounds that may fail: a cohort from which too few came is let go, and the next one is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from fl_core.errors import InputError
from fl_core.fleet import Turn

ATTEMPTS = 20
"""How many cohorts are asked for one round at most."""


def reaching(turns: Iterator[Turn], lacks: Callable[[Turn], str | None]) -> Iterator[Turn]:
    """The turns of a fleet that lack nothing, numbered as rounds 0, 1, 2, ...; each has those before it that did.

    `lacks` says what a turn has too little of, in words, or None. The clock runs on through an attempt that fails, and
    the next one asks whom the participation draws for it. All this is known before anybody trains, so that a failed
    attempt leaves no update behind and changes nothing that a client keeps. Only a synchronous fleet's turns may lack
    anything. Raises InputError where `ATTEMPTS` cohorts in a row do.
    """
    round, failed = 0, list[Turn]()
    for turn in turns:
        why = lacks(turn)
        if why is None:
            yield turn if turn.attempt == round else replace(_as_round(round, turn), aborted=tuple(failed))
            round, failed = round + 1, []
            continue
        failed.append(_as_round(round, turn))
        if len(failed) == ATTEMPTS:
            raise InputError(f"round {round + 1} was given up after {ATTEMPTS} cohorts in a row: {why}")


def _as_round(round: int, turn: Turn) -> Turn:
    return replace(turn, round=round, versions=torch.full_like(turn.versions, round), oldest=round + 1)
