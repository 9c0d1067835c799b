"""What a person at the terminal is told when an input cannot be used."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class InputError(ValueError):
    """One line: what is wrong, what is allowed, what to change. The command line exits with code 2."""


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    integer: bool = False,
    infinite: bool = False,
) -> None:
    """Raise InputError unless `value` is a number inside the stated limits (`above`/`below` exclude the end)."""
    kind = "a whole number" if integer else "a number"
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("above", above), ("at least", minimum), ("below", below), ("at most", maximum))
        if limit is not None
    ]
    allowed = " ".join([kind, " and ".join(limits)]).strip() + (" or inf" if infinite else "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and integer:
        is_number = isinstance(value, int)
    if not is_number:
        raise InputError(f"{name} is {value!r}; it must be {allowed}")
    assert isinstance(value, int | float)
    if math.isnan(value) or (math.isinf(value) and not (infinite and value > 0)):
        raise InputError(f"{name} is {value!r}; it must be {allowed}")
    too_small = (above is not None and value <= above) or (minimum is not None and value < minimum)
    too_large = (below is not None and value >= below) or (maximum is not None and value > maximum)
    if too_small or too_large:
        raise InputError(f"{name} is {value!r}; it must be {allowed}")


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of `allowed`; the message names the nearest one, whatever its case."""
    options = sorted(allowed)
    if value in options:
        return
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(value).lower(), lowered, n=1)
    hint = f"; did you mean {lowered[near[0]]!r}?" if near else ""
    listed = ", ".join(repr(option) if "," in option else option for option in options)
    raise InputError(f"{name} is {value!r}; allowed: {listed}{hint}")


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; allowed: true, false")


def check_list(name: str, value: object, of: str) -> None:
    """Raise InputError unless `value` is a list; `of` says of what, with an example."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {value!r}; it must be a list {of}")
