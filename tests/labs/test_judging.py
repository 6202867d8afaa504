"""held, failed, undecided."""

import pytest

from moeworks.labs.intervals import Estimate
from moeworks.labs.judging import above, all_of, below, within


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2, -1, "held"), (1, 2, "failed"), (-1, 1, "undecided"), (0, 0, "undecided")],
)
def test_below_and_above(low: float, high: float, verdict: str) -> None:
    assert below("x < 0", Estimate((low + high) / 2, low, high)).verdict == verdict
    assert above("x > 0", Estimate(-(low + high) / 2, -high, -low)).verdict == verdict
    assert below("x < 5", Estimate((low + high) / 2 + 5, low + 5, high + 5), 5).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, "held"), (-2, 0.5, "undecided"), (1.5, 2, "failed"), (-3, -1.2, "failed")],
)
def test_within(low: float, high: float, verdict: str) -> None:
    assert within("|x| < 1", Estimate((low + high) / 2, low, high), 1).verdict == verdict


def test_nothing_measured_is_undecided() -> None:
    assert [f("x", None, 1).verdict for f in (below, above, within)] == ["undecided"] * 3


def test_parts_of_a_claim() -> None:
    held, failed, open_ = (below("x < 0", Estimate(v, v - 0.5, v + 0.5)) for v in (-1.0, 1.0, 0.0))
    assert all_of([held, held]).verdict == "held"
    assert all_of([held, open_]).verdict == "undecided"
    assert all_of([held, open_, failed]).verdict == "failed"
