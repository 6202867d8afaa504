"""Throughput of the layer while another process wants one of the cores, over the undisturbed one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from suite.arms import our_arms, peer_arms
from suite.layers import LAYERS, TINY, LayerRun, LayerShape
from suite.peers import DENSE, GROUPED
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.sampling import per_second

SECONDS = 1.0
"""Least length of a sample: many turns of the scheduler."""
BUSY = ", one core busy"


_SPIN = """
import os, signal, sys
os.kill(os.getpid(), signal.SIGSTOP)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


class Spinner:
    """A process that computes without end, and only between `go` and `halt`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _SPIN, str(os.getpid())])

    def go(self) -> None:
        """Want a core."""
        self._process.send_signal(signal.SIGCONT)

    def halt(self) -> None:
        """Want none."""
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def contention_cases(settings: Settings) -> list[Case]:
    """The layer with 64 experts."""
    if settings.quick:
        return [TINY.case()]
    return [LayerShape(T=4096, D=512, **LAYERS[1]).case()]


def contention_arms(case: Case, settings: Settings) -> list[Arm]:
    """Ours, the dense layer and transformers' default: alone, and with a spinning process beside each."""
    shape = LayerShape(**case.shape)
    calm = partial(_calm, shape.T, settings)
    busy = partial(_busy, shape.T, settings)
    peers = (DENSE, GROUPED)
    arms = [*our_arms(shape, settings, calm), *peer_arms(shape, settings, calm, peers)]
    disturbed = [*our_arms(shape, settings, busy), *peer_arms(shape, settings, busy, peers)]
    return arms + [replace(arm, name=arm.name + BUSY, over=arm.name) for arm in disturbed]


def _calm(tokens: int, settings: Settings, layer: LayerRun) -> Sampler:
    return Sampler(_rate(tokens, settings, layer), layer.fingerprint)


def _busy(tokens: int, settings: Settings, layer: LayerRun) -> Sampler:
    spinner, rate = Spinner(), _rate(tokens, settings, layer)

    def sample() -> float:
        spinner.go()
        try:
            return rate()
        finally:
            spinner.halt()

    return Sampler(sample, layer.fingerprint, spinner.close)


def _rate(tokens: int, settings: Settings, layer: LayerRun) -> Callable[[], float]:
    return per_second(layer.run, tokens, settings, SECONDS)


register(
    Operation(
        name="contention",
        summary="MoE layer with a thread per core, and a process that spins on one core, over undisturbed",
        unit="tokens/s",
        reference=None,
        higher_is_better=True,
        all_cores=True,
        cases=contention_cases,
        arms=contention_arms,
    )
)
