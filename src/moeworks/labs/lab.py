"""What a lab is: a claim, arms that differ in their configs, and what is measured. Data, without torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moeworks.labs.figures import Figure
from moeworks.labs.judging import Judgement
from moeworks.labs.results import Results

Probe = Literal["signal", "knowledge", "batch_dependence"]
"""What is measured beside losses and loads; see probes.py."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the models that a lab compares."""

    name: str
    words: str
    """What it is, for the table."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path into RunConfig, laid over the lab's setting."""
    match: str | None = None
    """A whole-number field by its dotted path, that takes the value with which this arm's FLOPs per token
    come closest to those of the baseline arm."""
    steps: float = 1.0
    """Optimizer steps as a multiple of the lab's."""
    router_in_bfloat16: bool = False
    """Compute the router in bfloat16, which moeworks itself never does (see bfloat16_router.py)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric of the cells that the lab's table shows."""

    metric: str
    """Its name in a cell's metrics."""
    title: str
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything a run of a lab takes."""

    steps: int
    """Optimizer steps of an arm whose `steps` is 1."""
    seeds: int
    """Seeds 0, 1, ...; every arm runs with each: the comparison is paired."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A short experiment that settles a claim by measurement, in one setting."""

    name: str
    claim: str
    """The claim in one sentence."""
    source: str
    """Who claims it, and where."""
    question: str
    """What is judged, in terms of the measurements."""
    arms: tuple[Arm, ...]
    baseline: str
    """The arm that others are compared with."""
    judge: Callable[[Results], Judgement]
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of all arms, over setting.base_config."""
    full: Budget = Budget(steps=400, seeds=4)
    quick: Budget = Budget(steps=60, seeds=1)
    probes: tuple[Probe, ...] = ()
    columns: tuple[Column, ...] = ()
    figures: tuple[Callable[[Results], Figure | None], ...] = ()
    """Pictures beside the one of losses that every lab has; None where the results hold nothing to draw."""

    def arm(self, name: str) -> Arm:
        """The arm called `name`."""
        return next(arm for arm in self.arms if arm.name == name)
