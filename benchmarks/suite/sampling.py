"""From something that runs to samples: time, tokens per second, peak memory."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from moeworks.ops.native.library import Library, library
from suite.registry import RefusedError, Settings

MIN_SECONDS = 0.2
"""Shorter runs are repeated for at least this long, and the sample is their mean."""


def seconds_of(run: Callable[[], object], settings: Settings, min_seconds: float = MIN_SECONDS) -> float:
    """Mean seconds of a run."""
    least = 0.0 if settings.quick else min_seconds
    runs, started = 0, time.perf_counter()
    while True:
        run()
        if settings.device == "cuda":
            torch.cuda.synchronize()
        runs += 1
        elapsed = time.perf_counter() - started
        if elapsed >= least:
            return elapsed / runs


def milliseconds(run: Callable[[], object], settings: Settings) -> Callable[[], float]:
    """A sampler of milliseconds a run."""
    return lambda: 1000 * seconds_of(run, settings)


def per_second(
    run: Callable[[], object], amount: int, settings: Settings, min_seconds: float = MIN_SECONDS
) -> Callable[[], float]:
    """A sampler of `amount` a second."""
    return lambda: amount / seconds_of(run, settings, min_seconds)


def peak_megabytes(
    run: Callable[[], object],
    warm_up: Callable[[], object],
    parameters: Iterable[nn.Parameter],
    settings: Settings,
) -> float:
    """MB (10^6 bytes) by which `run` raises the peak of resident memory, less the gradients of `parameters`.

    `warm_up` is a small run that loads code and makes thread pools. Then free memory goes back to the
    system, the kernel's high-water mark (VmHWM) is reset to what is resident now (VmRSS), and `run` raises
    it. A peak that comes before the gradients exist is flattered by up to their size. For Linux and the CPU
    alone; see proc(5), clear_refs. Raises RefusedError elsewhere.
    """
    parameters = list(parameters)

    def prepare() -> None:
        warm_up()
        for parameter in parameters:
            parameter.grad = None

    growth = peak_growth(run, prepare, settings)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    return (growth - gradients) / 1e6


def peak_growth(run: Callable[[], object], warm_up: Callable[[], object], settings: Settings) -> int:
    """Bytes by which `run` raises the peak of resident memory, as `peak_megabytes` says.

    What `run` returns lives until the peak is read.
    """
    if settings.device != "cpu":
        raise RefusedError("measures the memory of the CPU")
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        raise RefusedError("peak memory is read from Linux's /proc")
    warm_up()
    gc.collect()
    _return_free_memory()
    reset.write_text("5")
    before = _status_bytes("VmRSS")
    kept = run()
    growth = _status_bytes("VmHWM") - before
    del kept
    return growth


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RefusedError(f"/proc/self/status has no {field}")


def _return_free_memory() -> None:
    native = library()
    if isinstance(native, Library):
        native.release_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library than glibc
        return
