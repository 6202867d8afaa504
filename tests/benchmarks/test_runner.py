"""Rounds, failures and agreement, on arms that only pretend to work."""

from collections.abc import Callable

import pytest

from suite import runner
from suite.registry import Arm, Case, Operation, RefusedError, Sampler, Settings
from suite.runner import Measured, measure_case
from suite.workers import Apart, Worker

CASE = Case("one", {})


def operation_of(*arms: Arm, reference: str | None = None) -> Operation:
    return Operation(
        name="pretended",
        summary="Pretended work",
        unit="ms",
        reference=reference,
        mode="together",
        cases=lambda settings: [CASE],
        arms=lambda case, settings: list(arms),
    )


def measure(*arms: Arm, rounds: int = 3) -> dict[str, Measured]:
    workers: dict[str, Worker] = {}
    operation = operation_of(*arms)
    measured = measure_case(operation, CASE, list(arms), Settings(threads=1), rounds, workers, str)
    return {entry.arm.name: entry for entry in measured}


def logged(name: str, log: list[str], fingerprint: list[float] | None = None) -> Arm:
    def sample() -> float:
        log.append(name)
        return float(len(log))

    sampler = Sampler(sample, lambda: fingerprint or [], lambda: log.append(f"{name} closed"))
    return Arm(name=name, build=lambda: sampler, maths="same")


def raising(error: Exception) -> Callable[[], Sampler]:
    def build() -> Sampler:
        raise error

    return build


def test_rounds_interleave_and_turn_round_after_a_warm_up_each() -> None:
    log: list[str] = []
    measured = measure(logged("a", log), logged("b", log))
    assert log == ["a", "b", *"abbaab", "a closed", "b closed"]
    assert measured["a"].samples == [3, 6, 7]


def test_what_is_refused_or_fails_leaves_the_others_alone() -> None:
    log: list[str] = []
    measured = measure(
        Arm(name="no", build=raising(RefusedError("too large"))),
        Arm(name="broken", build=raising(ZeroDivisionError("by zero"))),
        logged("a", log),
    )
    assert measured["no"].ready.refused == "too large" and not measured["no"].samples
    assert measured["broken"].ready.failed == "ZeroDivisionError: by zero"
    assert len(measured["a"].samples) == 3


def test_an_arm_that_fails_in_a_round_is_not_asked_again() -> None:
    calls: list[int] = []

    def sample() -> float:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("gone")
        return 1.0

    measured = measure(Arm(name="a", build=lambda: Sampler(sample)), rounds=5)
    assert measured["a"].ready.failed == "MemoryError: gone" and len(calls) == 3


def test_a_slow_arm_is_sampled_once_after_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    log: list[str] = []
    slow = measure(logged("a", log))["a"]
    assert slow.slow and slow.samples == [2] and log == ["a", "a", "a closed"]


def test_the_one_that_computes_something_else_is_named() -> None:
    log: list[str] = []
    measured = measure(
        logged("a", log, [1.0, 2.0]), logged("b", log, [1.0, 2.0001]), logged("c", log, [1.0, 2.1])
    )
    assert [entry.agrees for entry in measured.values()] == [True, True, False]
    assert measure(logged("a", log, [1.0]))["a"].agrees is None
    nan = measure(logged("a", log, [1.0]), logged("b", log, [1.0]), logged("c", log, [float("nan")]))
    assert nan["c"].agrees is False


def test_a_process_that_dies_is_a_failure_with_its_exit_code() -> None:
    worker = Apart(operation_of(), Settings())  # an operation that the process does not know
    ready = worker.prepare(CASE, "a")
    worker.close()
    assert ready.failed == "its process ended with exit code 1"
