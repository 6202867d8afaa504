"""Rounds of samples: every arm once a round, in turning order, so that the machine's drift hits all alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from suite.registry import Arm, Case, Operation, Settings
from suite.workers import Apart, Here, Ready, Worker

PATIENCE = 10.0
"""Seconds; an arm whose first two samples both take longer is not asked again."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of fingerprints, relative: in another order of sums single tokens may go to other experts."""

Tell = Callable[[str], None]


@dataclass
class Measured:
    """One arm in one case."""

    arm: Arm
    ready: Ready = field(default_factory=Ready)
    samples: list[float] = field(default_factory=list)
    slow: bool = False
    """Whether PATIENCE ended after the second sample, which is then the only one."""
    agrees: bool | None = None
    """Whether its fingerprint is that of the arms with the same maths; None if there are no others."""


def measure_case(
    operation: Operation,
    case: Case,
    arms: list[Arm],
    settings: Settings,
    rounds: int,
    workers: dict[str, Worker],
    tell: Tell,
) -> list[Measured]:
    """Sample `arms` in turn. `workers` keeps their processes, by arm, for the next case."""
    measured = [Measured(arm) for arm in arms]
    fresh = operation.mode == "fresh"
    if not fresh:
        for entry in measured:
            tell(f"{case.name}: {entry.arm.name}, warm-up")
            worker = _worker(operation, entry.arm, settings, workers)
            entry.ready = worker.prepare(case, entry.arm.name)
            if entry.ready.failed:
                workers.pop(entry.arm.name).close()  # its process may be gone
            elif entry.ready.seconds > PATIENCE:
                _settle_slow(entry, workers)
    for number in range(rounds):
        for entry in measured if number % 2 == 0 else reversed(measured):
            if entry.ready.refused or entry.ready.failed or entry.slow:
                continue
            tell(f"{case.name}: {entry.arm.name}, round {number + 1} of {rounds}")
            if fresh:
                _fresh_sample(operation, case, entry, settings)
            else:
                _sample(entry, workers)
    for worker in workers.values():
        worker.release()
    _compare(measured, TOLERANCE[settings.dtype])
    return measured


def _worker(operation: Operation, arm: Arm, settings: Settings, workers: dict[str, Worker]) -> Worker:
    if arm.name not in workers:
        kind = Apart if operation.mode == "apart" else Here
        workers[arm.name] = kind(operation, settings)
    return workers[arm.name]


def _settle_slow(entry: Measured, workers: dict[str, Worker]) -> None:
    """Ask once more: the first may have loaded code or met a busy machine. A second like it stays alone."""
    started = time.perf_counter()
    _sample(entry, workers)
    if time.perf_counter() - started > PATIENCE and not entry.ready.failed:
        entry.slow = True
    else:
        entry.samples.clear()


def _sample(entry: Measured, workers: dict[str, Worker]) -> None:
    try:
        entry.samples.append(workers[entry.arm.name].sample())
    except Exception as error:
        entry.ready = Ready(failed=f"{type(error).__name__}: {error}")
        workers.pop(entry.arm.name).close()


def _fresh_sample(operation: Operation, case: Case, entry: Measured, settings: Settings) -> None:
    worker = Apart(operation, settings)
    try:
        entry.ready = worker.prepare(case, entry.arm.name)
    finally:
        worker.close()
    if entry.ready.first is not None:
        entry.samples.append(entry.ready.first)


def _compare(measured: list[Measured], tolerance: float) -> None:
    """Set `agrees` wherever several arms should have computed the same: near the median of them all."""
    groups: dict[str, list[Measured]] = {}
    for entry in measured:
        if entry.arm.maths is not None and entry.ready.fingerprint:
            groups.setdefault(entry.arm.maths, []).append(entry)
    for group in groups.values():
        if len(group) < 2:
            continue
        figures = zip(*(entry.ready.fingerprint for entry in group), strict=True)
        middle = [statistics.median(figure) for figure in figures]
        for entry in group:
            pairs = zip(entry.ready.fingerprint, middle, strict=True)
            entry.agrees = all(abs(own - other) <= tolerance * abs(other) for own, other in pairs)
