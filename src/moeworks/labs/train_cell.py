"""One cell: train an arm with a seed, and measure. The record is JSON; its parts are told at `run_cell`."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from moeworks.config.count import count_parameters
from moeworks.data.shards import PreparedCorpus
from moeworks.errors import TrainingError
from moeworks.labs.bfloat16_router import use_bfloat16_routers
from moeworks.labs.cells import FORMAT, Cell
from moeworks.labs.held_out import HeldOut
from moeworks.labs.meter import Meter, points
from moeworks.labs.probes import PROBES, SIGNAL_POINTS, Bench, signal
from moeworks.labs.setting import training_flops
from moeworks.parallel.world import World
from moeworks.train.step import autocast
from moeworks.train.trainer import Trainer

CURVE_POINTS = 8
"""Points of the curve at which held-out text is read too."""
CURVE_BATCHES = 6
"""Batches of held-out text there."""

Tell = Callable[[float], None]


def run_cell(cell: Cell, corpus: PreparedCorpus, tell: Tell = lambda done: None) -> dict[str, Any]:
    """Train and measure; `tell` hears the share that is done.

    The record has
        diverged    None, or the step and message with which the loss or gradient stopped being finite
        documents   nats and bytes of each held-out document, or None after divergence
        metrics     single numbers by name: means over layers, and what probes found
        layers      a number per MoE layer, by name
        curve       step, tokens, CPU seconds, training loss, and at some points held-out loss
        load        step, tokens_per_expert and figures per MoE layer since the point before
        signal      step and figures of the router's gradient and inputs (with the probe "signal")

    CPU seconds are those of this process in optimizer steps, on one thread: on a machine that other
    programs share they say more than a clock does.
    """
    trainer = Trainer(cell.config, corpus, World())
    if cell.router_in_bfloat16:
        use_bfloat16_routers(trainer.model)
    train = cell.config.train
    held_out = HeldOut.of(corpus, cell.held_out, train.seq_len, train.batch_size)
    course = _Course(cell, trainer, held_out, tell)
    diverged = course.run()
    record: dict[str, Any] = {
        "format": FORMAT,
        "lab": cell.lab,
        "arm": cell.arm,
        "seed": cell.seed,
        "key": cell.key,
        "environment": dict(cell.environment),
        "count": _count(cell),
        "diverged": diverged,
        "documents": None,
        "curve": course.meter.curve,
        "load": course.meter.load,
        "signal": course.signal,
    }
    with autocast(cell.config, trainer.world.device):
        return record | _measured(cell, trainer, held_out, course, finite=diverged is None)


class _Course:
    """The training of a cell, with what is measured on the way."""

    def __init__(self, cell: Cell, trainer: Trainer, held_out: HeldOut, tell: Tell) -> None:
        self.cell, self.trainer, self.held_out, self.tell = cell, trainer, held_out, tell
        self.meter = Meter(len(cell.config.model.moe_layers))
        self.signal: list[dict[str, Any]] = []
        self.cpu_seconds = 0.0

    def run(self) -> dict[str, Any] | None:
        """All steps; what stopped them, if anything did."""
        steps = self.cell.config.train.steps
        at = points(steps)
        on_curve, on_signal = points(steps, CURVE_POINTS), points(steps, SIGNAL_POINTS)
        for number in range(1, steps + 1):
            began = time.process_time()
            try:
                step = self.trainer.step()
            except TrainingError as error:
                return {"step": number, "message": str(error)}
            self.cpu_seconds += time.process_time() - began
            self.meter.add(step)
            if number in at | on_curve:
                self.meter.point(number, self.trainer.progress.tokens, self.cpu_seconds)
                self.tell(number / steps)
            with autocast(self.cell.config, self.trainer.world.device):
                self._look(number, number in on_curve, number in on_signal)
        return None

    def _look(self, number: int, curve: bool, at_signal: bool) -> None:
        if curve:
            self.meter.curve[-1]["loss"] = self.held_out.loss(self.trainer.model, CURVE_BATCHES)
        if at_signal and "signal" in self.cell.probes:
            self.signal.append({"step": number, **signal(self.trainer)})


def _count(cell: Cell) -> dict[str, int]:
    parameters = count_parameters(cell.config.model)
    return {
        "parameters": parameters.total,
        "active": parameters.active,
        "flops": training_flops(cell.config),
        "steps": cell.config.train.steps,
        "tokens": cell.config.train.steps * cell.config.train.batch_size * cell.config.train.seq_len,
    }


def _measured(
    cell: Cell, trainer: Trainer, held_out: HeldOut, course: _Course, *, finite: bool
) -> dict[str, Any]:
    """The parts of the record that the trained model gives."""
    late = course.meter.late()
    layers: dict[str, list[float]] = {**late, "early_max_vio": course.meter.early_max_vio()} if late else {}
    metrics = {name: float(np.mean(values)) for name, values in layers.items()}
    metrics |= {"diverged": float(not finite), "cpu_seconds": course.cpu_seconds}
    if not finite:
        return {"metrics": metrics, "layers": layers}
    with torch.random.fork_rng():
        for name in cell.probes:
            found = PROBES[name](Bench(trainer, held_out, course.signal))
            layers |= found.layers
            metrics |= found.metrics
    nats = held_out.document_nats(trainer.model)
    documents = {"nats": [round(float(n), 4) for n in nats], "bytes": held_out.bytes_N.tolist()}
    finite_nats = bool(np.isfinite(nats).all())
    return {"metrics": metrics, "layers": layers, "documents": documents if finite_nats else None}
