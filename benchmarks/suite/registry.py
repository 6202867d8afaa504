"""What is measured: operations, each with its cases (shapes) and its arms (ours, the reference, peers).

An operation is registered once, in its module under operations/. Everything else (in which process an arm
runs, in which order, for how long, how it is printed) is the runner's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Mode = Literal["together", "apart", "fresh"]
"""All arms in one process; a process for each arm, sampled in turn; a new process for every sample."""


class RefusedError(Exception):
    """An arm does not serve a case; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all measurements of one call share; goes to every process and into the JSON."""

    threads: int = 2
    """Threads of torch."""
    quick: bool = False
    """Tiny shapes that show that everything runs; the figures mean nothing."""
    data: str | None = None
    """Folder with traces/expert_counts_real.npz, for routing of real loads."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Device and dtype of the operations on one layer."""

    @property
    def placement(self) -> dict[str, Any]:
        """Keywords of `.to` and of tensor factories."""
        return {"device": torch.device(self.device), "dtype": getattr(torch, self.dtype)}


@dataclass(frozen=True)
class Case:
    """One shape of an operation."""

    name: str
    shape: dict[str, Any]
    """Numbers and words, for the arms and for JSON."""


@dataclass(frozen=True)
class Sampler:
    """An arm that is built and ready."""

    sample: Callable[[], float]
    """One sample in the unit of the operation."""
    fingerprint: Callable[[], list[float]] = list
    """After a sample: figures of its result that every arm of the same `maths` must share."""
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of those compared."""

    name: str
    build: Callable[[], Sampler]
    """Called in the process that measures. Raises RefusedError."""
    ours: bool = False
    over: str | None = None
    """Its ratio is over this arm, if not over the operation's reference."""
    maths: str | None = None
    """Arms with equal `maths` start from equal weights and inputs and must have equal fingerprints."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A thing worth measuring."""

    name: str
    summary: str
    """One line for --list."""
    unit: str
    reference: str | None
    """The arm that ratios are over."""
    higher_is_better: bool = False
    mode: Mode = "apart"
    rounds: int = 7
    """Samples of each arm, unless the call says otherwise."""
    all_cores: bool = False
    """Use as many threads as there are cores, whatever the settings say."""
    cases: Callable[[Settings], list[Case]] = field(repr=False)
    arms: Callable[[Case, Settings], list[Arm]] = field(repr=False)
    """Their names and order do not depend on what is installed; imports of peers wait for `build`."""


OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add to the table. Raises ValueError when the name is taken."""
    if operation.name in OPERATIONS:
        raise ValueError(f"operation {operation.name!r} is registered twice")
    OPERATIONS[operation.name] = operation
    return operation


def wanted(arms: Iterable[Arm], patterns: list[str] | None, reference: str | None) -> list[Arm]:
    """The arms whose name holds one of `patterns`, and those that their ratios are over; all without any."""
    arms = list(arms)
    if not patterns:
        return arms
    names = {arm.name for arm in arms if any(p in arm.name for p in patterns)}
    names |= {arm.over or reference for arm in arms if arm.name in names} - {None}
    return [arm for arm in arms if arm.name in names]
