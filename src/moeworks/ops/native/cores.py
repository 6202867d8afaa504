"""Sharing the cores with other processes: how torch's OpenMP threads wait for each other.

Between two parallel regions libgomp's threads spin for some milliseconds. On idle cores that is the fastest
way to wait. Beside another process it is the slowest: a thread that spins uses up the time slice that the
thread it waits for needs, and a training run keeps a third of the throughput that its share of the cores
would give. libgomp spins a thousand times shorter while it manages more threads than there are processors
(GOMP_SPINCOUNT in its manual), and that number can be raised at run time by a team of threads that sleep.
"""

import ctypes
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from moeworks.ops.native.library import torch_openmp

_TASKS = Path("/proc/self/task")
_INTERVAL = 0.2
"""Seconds between two looks at the scheduler's counters."""
_CONTENDED = 0.25
"""Seconds that threads waited for a core, per second: from here on the cores are shared with others."""
_CALM = 0.12
"""Below this many seconds of waiting per second, the cores are not shared."""
_CALM_LOOKS = 5
"""Consecutive calm readings after which threads spin again."""


@contextmanager
def sharing_cores() -> Generator[None]:
    """Inside the block, torch's threads sleep instead of spinning while other processes want the cores.

    Results do not depend on it. Does nothing where torch does not compute with libgomp, or where the system
    (any but Linux) does not say how long threads wait for a core.
    """
    parallel = torch_openmp()
    if parallel is None or run_delay() is None:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(parallel, ended), name="moeworks-cores", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def run_delay(tasks: Path = _TASKS) -> float | None:
    """Seconds that the living threads of this process were ready to run and had no core; None if unknown.

    Source: the second field of /proc/PID/task/TID/schedstat, nanoseconds (Linux, Documentation/scheduler/
    sched-stats.rst).
    """
    total = None
    try:
        names = os.listdir(tasks)
    except OSError:
        return None
    for name in names:
        try:
            total = (total or 0) + int((tasks / name / "schedstat").read_bytes().split()[1])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has ended, or a kernel without these counters
    return None if total is None else total * 1e-9


class Contention:
    """Whether other processes want our cores, from the share of time that threads waited for one."""

    def __init__(self) -> None:
        self.contended = False
        self._calm = 0

    def update(self, waited: float) -> bool:
        """Record the seconds that threads waited per second of the last interval; returns the new verdict."""
        self._calm = self._calm + 1 if waited < _CALM else 0
        if waited > _CONTENDED:
            self.contended = True
        elif self._calm >= _CALM_LOOKS:
            self.contended = False
        return self.contended


class SleepingTeam:
    """A team of OpenMP threads that does nothing: while it exists, libgomp's threads hardly spin."""

    def __init__(self, parallel: int) -> None:
        """`parallel`: the address of libgomp's GOMP_parallel."""
        self._dismissed = threading.Event()
        self._assembled = threading.Event()
        self._thread = threading.Thread(
            target=self._lead, args=(parallel,), name="moeworks-sleeping-team", daemon=True
        )
        self._thread.start()
        self._assembled.wait()

    def dismiss(self) -> None:
        """End the threads of the team."""
        self._dismissed.set()
        self._thread.join()

    def _lead(self, parallel: int) -> None:
        region = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
            parallel
        )
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) returns at once
        region(nothing, None, (os.cpu_count() or 1) + 1, 0)
        self._assembled.set()
        # libgomp ends a team when the thread that leads it ends.
        self._dismissed.wait()


def _watch(parallel: int, ended: threading.Event) -> None:
    contention, team = Contention(), None
    before = run_delay() or 0.0
    while not ended.wait(_INTERVAL):
        now = run_delay() or before
        # A thread that ended took its counter with it.
        contended = contention.update(max(now - before, 0.0) / _INTERVAL)
        before = now
        if contended and team is None:
            team = SleepingTeam(parallel)
        elif not contended and team is not None:
            team.dismiss()
            team = None
    if team is not None:
        team.dismiss()
