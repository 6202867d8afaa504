"""Numbers in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.analyse.verdicts.words import (
    duration,
    finite,
    percent,
    plural,
    short_number,
    span,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (0.123456, "0.123"), (999, "999"), (1000, "1.00 k"), (81_920, "81.9 k"),
        (999_400, "999 k"), (999_600, "1.00 M"), (1_130_000, "1.13 M"), (3.2e9, "3.20 B"), (1.5e12, "1.50 T"),
    ],
)  # fmt: skip
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


@given(st.floats(1, 1e14))
def test_short_number_is_right_to_three_digits(value: float) -> None:
    number, _, unit = short_number(value).partition(" ")
    back = float(number) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert back == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (300.1, "5 min 0 s"), (7384, "2 h 3 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percent_never_reads_as_zero_for_something() -> None:
    assert percent(0.0) == "0.0 %"
    assert percent(0.0004) == "under 0.1 %"
    assert percent(1 / 32) == "3.1 %"


def test_plural_and_span() -> None:
    assert (plural(1, "layer"), plural(1200, "layer")) == ("1 layer", "1,200 layers")
    assert (span(10, 10), span(91, 100)) == ("step 10", "steps 91 to 100")


def test_finite_rounds_and_drops_what_json_cannot_hold() -> None:
    assert finite(3.14159265, 5) == 3.1416
    assert finite(float("nan"), 5) is None
    assert finite(float("inf"), 5) is None
