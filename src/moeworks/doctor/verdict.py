"""Verdicts, and the checks that give them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from moeworks.doctor.subject import Subject, Unavailable
from moeworks.errors import ConfigError, nearest

Verdict = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    verdict: Verdict
    message: str
    """Measured numbers, or why the check does not apply."""


@dataclass(frozen=True)
class Invariant:
    """Something that must hold of every MoE model."""

    name: str
    title: str
    """A few words, for a table."""
    explanation: str
    """One paragraph."""
    pitfalls: tuple[int, ...]
    """Keys of `moeworks.doctor.pitfalls.PITFALLS` that it guards against."""
    examine: Callable[[Subject], Outcome]
    top_k_only: bool = False
    """It holds a model against the definition of top-k of each token's own scores."""
    every_expert: bool = False
    """It moves tokens to experts that a pool may not have."""

    def of(self, subject: Subject) -> Outcome:
        """The outcome on one subject. Raises Unavailable where it does not apply."""
        if self.every_expert and subject.claims.pooled:
            raise Unavailable(
                "it takes every token to have any expert, and these tokens have pools of experts"
            )
        choice = subject.claims.choice
        if self.top_k_only and choice is not None:
            raise Unavailable(f"it is about top-k of each token's own scores, and this router is {choice!r}")
        return self.examine(subject)


@dataclass(frozen=True)
class Finding:
    """The outcome of one invariant."""

    check: str
    title: str
    verdict: Verdict
    message: str
    pitfalls: tuple[int, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one subject."""

    subject: str
    kind: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that are failures."""
        return tuple(f for f in self.findings if f.verdict == "fail")


def invariant(
    name: str, title: str, *pitfalls: int, top_k_only: bool = False, every_expert: bool = False
) -> Callable[[Callable[[Subject], Outcome]], Invariant]:
    """Make an Invariant of a function whose docstring is the explanation."""

    def make(function: Callable[[Subject], Outcome]) -> Invariant:
        explanation = " ".join((inspect.getdoc(function) or "").split())
        return Invariant(name, title, explanation, pitfalls, function, top_k_only, every_expert)

    return make


def passed(message: str) -> Outcome:
    """The invariant holds."""
    return Outcome("pass", message)


def failed(message: str) -> Outcome:
    """It does not."""
    return Outcome("fail", message)


def judge(holds: bool, message: str) -> Outcome:
    """Pass or fail with the same numbers."""
    return Outcome("pass" if holds else "fail", message)


def examine(
    subject: Subject,
    invariants: Sequence[Invariant],
    on_finding: Callable[[Finding], None] | None = None,
) -> Diagnosis:
    """Every invariant on one subject. A model that raises an error where it should compute has failed."""
    findings = []
    for check in invariants:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                outcome = check.of(subject)
        except Unavailable as reason:
            outcome = Outcome("not applicable", str(reason))
        except Exception as error:  # whatever a model of someone else's raises is the finding
            outcome = failed(f"raised {type(error).__name__}: {_first_line(error)}")
        finding = Finding(check.name, check.title, outcome.verdict, outcome.message, check.pitfalls)
        findings.append(finding)
        if on_finding is not None:
            on_finding(finding)
    return Diagnosis(subject.name, subject.kind, tuple(findings))


def select(invariants: Sequence[Invariant], names: Sequence[str]) -> tuple[Invariant, ...]:
    """Those that are named, or all. Raises ConfigError for a name that there is not."""
    known = {check.name: check for check in invariants}
    for name in names:
        if name not in known:
            raise ConfigError(f"check {name!r}: unknown; {nearest(name, known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else tuple(invariants)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
