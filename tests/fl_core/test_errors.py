"""Messages for the person at the terminal: what is wrong, what is allowed."""

from __future__ import annotations

import pytest

from fl_core.errors import InputError, check_choice, check_number


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (0, {"above": 0}),
        (-1, {"minimum": 0}),
        (1, {"below": 1}),
        (2, {"maximum": 1}),
        (1.5, {"integer": True}),
        (1.0, {"integer": True}),
        (True, {"minimum": 0}),
        (True, {"integer": True}),
        ("1", {}),
        (None, {}),
        ([1], {}),
        (float("nan"), {}),
        (float("nan"), {"infinite": True}),
        (float("inf"), {"above": 0}),
        (float("-inf"), {"infinite": True}),
    ],
)
def test_a_value_outside_the_limits_is_refused_in_one_line_with_its_name_and_value(value, limits):
    with pytest.raises(InputError) as caught:
        check_number("group.option", value, **limits)
    message = str(caught.value)
    assert message.startswith(f"group.option is {value!r}; it must be a ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (1e-300, {"above": 0}),
        (0, {"minimum": 0}),
        (0.999, {"below": 1}),
        (1, {"maximum": 1, "integer": True}),
        (float("inf"), {"above": 0, "infinite": True}),
    ],
)
def test_a_value_inside_the_limits_passes(value, limits):
    check_number("group.option", value, **limits)


def test_the_message_states_every_limit():
    with pytest.raises(InputError, match=r"it must be a whole number at least 1 and at most 9$"):
        check_number("rounds", 10, minimum=1, maximum=9, integer=True)
    with pytest.raises(InputError, match=r"it must be a number above 0 and below 1$"):
        check_number("delta", 1, above=0, below=1)
    with pytest.raises(InputError, match=r"it must be a number above 0 or inf$"):
        check_number("epsilon", 0, above=0, infinite=True)


def test_a_misspelt_choice_is_told_what_is_allowed_and_what_is_near():
    check_choice("backend", "vmap", ("loop", "vmap"))
    with pytest.raises(InputError, match=r"backend is 'vmapp'; allowed: loop, vmap; did you mean 'vmap'\?"):
        check_choice("backend", "vmapp", ("vmap", "loop"))
    with pytest.raises(InputError, match=r"backend is 7; allowed: loop, vmap$"):
        check_choice("backend", 7, ("vmap", "loop"))


def test_a_choice_with_a_comma_is_quoted_and_the_nearest_is_found_in_any_case():
    with pytest.raises(InputError, match="allowed: LiRA, 'LiRA, offline', RMIA; did you mean 'LiRA'"):
        check_choice("--attack", "lira", ("LiRA", "LiRA, offline", "RMIA"))
