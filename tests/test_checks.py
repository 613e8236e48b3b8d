import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_stable import checks

NO_NUMBERS = [True, np.True_, None, "1", [1], 1j]


@settings(deadline=None, max_examples=150)
@given(
    value=st.integers(-(10**400), 10**400) | st.floats() | st.floats(width=32).map(np.float32) | st.integers(-9, 9),
    ends=st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(sorted),
    infinite=st.tuples(st.booleans(), st.booleans()),
    closed=st.tuples(st.booleans(), st.booleans()),
)
def test_a_number_lies_in_the_interval_or_is_refused(
    value: Any, ends: list[int], infinite: tuple[bool, bool], closed: tuple[bool, bool]
) -> None:
    low, high = -math.inf if infinite[0] else ends[0], math.inf if infinite[1] else ends[1]
    interval = f"{'[' if closed[0] else '('}{low}, {high}{']' if closed[1] else ')'}"
    try:
        rounded = float(value)
    except OverflowError:  # an integer beyond the largest float counts as infinite
        rounded = math.inf if value > 0 else -math.inf
    inside = (rounded > low or (closed[0] and rounded == low)) and (rounded < high or (closed[1] and rounded == high))
    if inside:
        number = checks.number("x", value, interval)
        assert type(number) is float
        assert number == rounded
    else:
        with pytest.raises(ValueError, match=r"`x` must be a number in [\[(].*[\])]. Got"):
            checks.number("x", value, interval)


@settings(deadline=None)
@given(
    value=st.integers(-(2**62), 2**62) | st.integers(-99, 99).map(np.int64),
    minimum=st.integers(-9, 9),
    span=st.none() | st.integers(0, 9),
)
def test_an_integer_lies_in_the_range_or_is_refused(value: Any, minimum: int, span: int | None) -> None:
    maximum = None if span is None else minimum + span
    if value >= minimum and (maximum is None or value <= maximum):
        integer = checks.integer("n", value, minimum, maximum)
        assert type(integer) is int
        assert integer == value
    else:
        with pytest.raises(ValueError, match=r"`n` must be an? .*integer.*\. Got"):
            checks.integer("n", value, minimum, maximum)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "a positive integer"),
        ((0,), "a nonnegative integer"),
        ((2,), "an integer of at least 2"),
        ((0, 5), "an integer in 0 .. 5"),
    ],
)
def test_a_range_of_integers_is_named(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=rf"`n` must be {words}. Got -1\.$"):
        checks.integer("n", -1, *arguments)


@pytest.mark.parametrize("value", [*NO_NUMBERS, math.nan, 1.0, np.float64(1.0)])
def test_other_things_are_no_integers(value: object) -> None:
    with pytest.raises(TypeError, match=r"`n` must be a positive integer\. Got"):
        checks.integer("n", value)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_other_things_are_no_numbers(value: object) -> None:
    with pytest.raises(TypeError, match=r"`x` must be a number in \(-inf, inf\)\. Got"):
        checks.number("x", value)


def test_a_boolean_is_true_or_false() -> None:
    assert checks.boolean("flag", True) is True
    assert checks.boolean("flag", False) is False
    for value in (0, 1, None, "yes"):
        with pytest.raises(TypeError, match=r"`flag` must be True or False\. Got"):
            checks.boolean("flag", value)


def test_a_text_is_a_string_with_characters() -> None:
    assert checks.text("name", "core") == "core"
    with pytest.raises(ValueError, match=r"`name` must not be empty\. Got ''"):
        checks.text("name", "")
    with pytest.raises(TypeError, match=r"`name` must be a string\. Got None"):
        checks.text("name", None)


def test_a_choice_is_one_of_the_choices() -> None:
    assert checks.choice("mode", "min", ("min", "max")) == "min"
    with pytest.raises(ValueError, match=r"`mode` must be one of \['min', 'max'\]\. Got 'mean'"):
        checks.choice("mode", "mean", ("min", "max"))
    with pytest.raises(TypeError, match=r"`mode` must be one of \['min', 'max'\]\. Got 0"):
        checks.choice("mode", 0, ("min", "max"))


def test_patterns_are_a_list_of_strings_or_none() -> None:
    assert checks.patterns("modules", None) is None
    assert checks.patterns("modules", "core.*") == ["core.*"]
    assert checks.patterns("modules", (name for name in ("a", "b"))) == ["a", "b"]
    assert checks.patterns("modules", []) == []
    for value in (1, ["a", 1], [None]):
        with pytest.raises(TypeError, match=r"`modules` must be a name pattern, several of them, or None\. Got"):
            checks.patterns("modules", value)


def test_a_seed_fits_into_a_generator() -> None:
    assert checks.seed("seed", 2**63 - 1) == 2**63 - 1
    for value in (-1, 2**63):
        with pytest.raises(ValueError, match=r"`seed` must be an integer in 0 .. 9223372036854775807\. Got"):
            checks.seed("seed", value)
