"""The records of a verdict."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "look", "problem", "note"]

ERROR = 0.05
"""How often each test may fire where there is nothing but noise."""


@dataclass(frozen=True)
class Test:
    """What decided whether an effect is more than noise."""

    statistic: str
    """What was measured, in words."""
    value: float
    """The statistic, or the p-value where `limit` is the stated level."""
    limit: float
    """What it was compared with."""
    null: str
    """What the world is like in which the test may fire only by mistake."""
    correction: str
    """How the number of things that were looked at is allowed for."""
    level: float = ERROR
    """How often the test may fire in that world."""

    __test__ = False  # to pytest


@dataclass(frozen=True)
class Verdict:
    """One finding in words."""

    level: Level
    text: str
    rule: str
    """How it was judged: threshold, null and correction."""
    advice: str = ""
    """What it likely means and what to do about it."""
    test: Test | None = None
    """None for facts of the trace itself: there is nothing to be mistaken about."""


def in_order(verdicts: list[Verdict]) -> list[Verdict]:
    """Problems first, then what deserves a look; the others in their order."""
    order = ("problem", "look")
    return sorted(verdicts, key=lambda one: order.index(one.level) if one.level in order else len(order))
