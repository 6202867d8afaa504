"""From intervals to a judgement: held, failed or undecided, in this setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moeworks.labs.intervals import Estimate

Verdict = Literal["held", "failed", "undecided"]


@dataclass(frozen=True)
class Evidence:
    """One thing that the claim says, and what was measured of it."""

    statement: str
    """What must be true, with its threshold."""
    estimate: Estimate | None
    """None where there was nothing to measure."""
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    """What became of a claim."""

    verdict: Verdict
    """held: every part of it; failed: a part is contradicted; undecided: an interval reaches over the
    threshold, or there was nothing to measure."""
    evidence: tuple[Evidence, ...]
    note: str = ""
    """What else there is to know."""


def below(statement: str, estimate: Estimate | None, threshold: float = 0.0) -> Evidence:
    """The number is below the threshold: held when its whole interval is, failed when all of it is above."""
    if estimate is None:
        return Evidence(statement, None, "undecided")
    if estimate.high < threshold:
        return Evidence(statement, estimate, "held")
    return Evidence(statement, estimate, "failed" if estimate.low > threshold else "undecided")


def above(statement: str, estimate: Estimate | None, threshold: float = 0.0) -> Evidence:
    """The number is above the threshold."""
    if estimate is None:
        return Evidence(statement, None, "undecided")
    mirrored = below(statement, Estimate(-estimate.value, -estimate.high, -estimate.low), -threshold)
    return Evidence(statement, estimate, mirrored.verdict)


def within(statement: str, estimate: Estimate | None, margin: float) -> Evidence:
    """The number is 0 for practical purposes: held when its whole interval lies inside +-margin, failed when
    all of it lies outside."""
    if estimate is None:
        return Evidence(statement, None, "undecided")
    if -margin < estimate.low and estimate.high < margin:
        return Evidence(statement, estimate, "held")
    outside = estimate.low > margin or estimate.high < -margin
    return Evidence(statement, estimate, "failed" if outside else "undecided")


def all_of(evidence: Sequence[Evidence], note: str = "") -> Judgement:
    """A claim of several parts: it fails with any of them, and holds with all."""
    verdicts = {item.verdict for item in evidence}
    if "failed" in verdicts:
        return Judgement("failed", tuple(evidence), note)
    return Judgement("held" if verdicts == {"held"} else "undecided", tuple(evidence), note)
