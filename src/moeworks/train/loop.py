"""The training loop: steps, lines of metrics, validations, checkpoints, and a clean way out."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moeworks.checkpoint import (
    checkpoint_dir,
    list_checkpoints,
    prune_checkpoints,
    write_checkpoint,
)
from moeworks.errors import TrainingError
from moeworks.layers.router import expert_bias_of
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.load import load_figures
from moeworks.train.alarms import AlarmState, Figures, alarm_records
from moeworks.train.metrics import MetricsSink
from moeworks.train.run_dir import RunDir
from moeworks.train.step import StepLosses
from moeworks.train.trainer import Step, Trainer


@dataclass(frozen=True)
class Callbacks:
    """What the loop is handed from above: it imports neither evaluation nor the terminal."""

    evaluate: Callable[[Decoder], dict[str, Any]]
    """The fields of an eval record."""
    on_step: Callable[[Trainer, Step], None]
    """After every step."""
    on_record: Callable[[dict[str, Any]], None]
    """After every record of metrics."""
    on_signal: Callable[[int], None] = lambda number: None
    """When a signal stops the run: its number."""


class _Interval:
    """Sums since the last line of metrics."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._logit_sizes: list[Tensor] = []
        self._domain_counts: Tensor | None = None

    def add(self, step: Step) -> None:
        # Counts by domain are large: only their sum is kept.
        watched = step.losses.watched
        self._steps.append(replace(step, losses=replace(step.losses, watched=None)))
        if watched is not None:
            self._logit_sizes.append(watched.logit_size_l)
            before = self._domain_counts
            self._domain_counts = watched.domain_counts if before is None else before + watched.domain_counts

    def records(self, trainer: Trainer, seconds: float) -> list[dict[str, Any]]:
        """The train record of these steps and, for a MoE, the routing record and what the alarms say."""
        steps, progress = self._steps, trainer.progress
        losses = [s.losses for s in steps]
        layers = len(trainer.config.model.moe_layers)  # without those of MTP layers
        counts_lE = torch.stack([x.counts_lE[:layers] for x in losses]).sum(dim=0)
        train = trainer.config.train
        record: dict[str, Any] = {
            "kind": "train",
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "loss": _mean([x.loss for x in losses]),
            "learning_rate": steps[-1].learning_rate,
            "grad_norm": _mean([s.grad_norm for s in steps]),
            "tokens_per_second": round(len(steps) * train.batch_size * train.seq_len / max(seconds, 1e-9), 1),
            "balance": {name: _mean([x.balance[name] for x in losses]) for name in losses[0].balance},
            **vars(load_figures(counts_lE)) | {"max_vio": _mean_max_vio(losses, layers)},
            "dropped": torch.stack([x.dropped_l[:layers] for x in losses]).mean(dim=0).tolist(),
        }
        if losses[0].router:
            record["router"] = {name: _mean([x.router[name] for x in losses]) for name in losses[0].router}
        if trainer.config.model.num_mtp_layers:
            record["mtp_loss"] = _mean([x.mtp for x in losses])
        if not counts_lE.numel():
            return [record]
        routing = {"kind": "routing", "step": progress.step, "tokens_per_expert": counts_lE.tolist()}
        return [record, routing, *self._alarms(trainer, counts_lE)]

    def _alarms(self, trainer: Trainer, counts_lE: Tensor) -> list[dict[str, Any]]:
        """The alarms that these steps raise and end; their state goes into the progress."""
        if not self._logit_sizes or self._domain_counts is None:
            return []
        routers = [moe.router for moe in moe_modules(trainer.model)][: len(counts_lE)]
        biases = [expert_bias_of(router) for router in routers]
        spreads = [b.max() - b.min() for b in biases if b is not None]
        figures = Figures(
            counts_lE=counts_lE,
            logit_size_l=torch.stack(self._logit_sizes).mean(dim=0),
            bias_spread_l=torch.stack(spreads) if spreads else None,
            domain_counts=self._domain_counts if len(self._domain_counts) else None,
        )
        progress, state = trainer.progress, AlarmState.from_json(trainer.progress.alarms)
        domains = trainer.corpus.domains
        state, records = alarm_records(state, figures, trainer.config, domains, progress.step)
        progress.alarms = state.to_json()
        return records


def train(trainer: Trainer, run: RunDir, sink: MetricsSink | None, callbacks: Callbacks) -> bool:
    """Run to train.steps; False when a signal stopped it first (the state is saved in either case).

    `sink` is None on ranks that write nothing. Raises TrainingError on a loss or gradient that is not finite,
    naming the last good checkpoint.
    """
    config, progress = trainer.config.train, trainer.progress
    with _signals() as stop:
        interval, interval_start = _Interval(), progress.seconds
        while progress.step < config.steps:
            started = time.perf_counter()
            step = _guarded_step(trainer, run)
            progress.seconds += time.perf_counter() - started
            interval.add(step)
            callbacks.on_step(trainer, step)
            stopping = trainer.world.any(bool(stop))
            validating = _due(progress.step, config.eval_every, config.steps)
            saving = stopping or _due(progress.step, config.checkpoint_every, config.steps)
            # A checkpoint ends the interval too: what it has counted is on disk then, and resumes exactly.
            if saving or validating or _due(progress.step, config.log_every, config.steps):
                for record in interval.records(trainer, progress.seconds - interval_start):
                    _emit(record, sink, callbacks)
                interval, interval_start = _Interval(), progress.seconds
            improved = validating and _evaluate(trainer, sink, callbacks)
            if saving or improved:
                save(trainer, run, sink)
            if stop:
                callbacks.on_signal(stop[0])
            if stopping:
                return progress.step >= config.steps
    return True


def save(trainer: Trainer, run: RunDir, sink: MetricsSink | None) -> None:
    """Write a checkpoint of now and prune older ones; the main rank writes, the others wait."""
    if trainer.world.is_main and sink is not None:
        progress = trainer.progress
        progress.metrics_bytes = sink.sync()
        tensors, state = trainer.state()
        write_checkpoint(checkpoint_dir(run.checkpoints, progress.step), tensors, state)
        prune_checkpoints(run.checkpoints, trainer.config.train.keep_last, progress.best_step)
    trainer.world.wait()


def _evaluate(trainer: Trainer, sink: MetricsSink | None, callbacks: Callbacks) -> bool:
    """Validate; True when the loss is the best so far, which is worth a checkpoint."""
    progress = trainer.progress
    record: dict[str, Any] = {
        "kind": "eval",
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        **callbacks.evaluate(trainer.model),
    }
    best = progress.best_bits_per_byte
    improved = record["bits_per_byte"] < (math.inf if best is None else best)
    if improved:
        progress.best_step, progress.best_bits_per_byte = progress.step, record["bits_per_byte"]
    _emit(record, sink, callbacks)
    return improved


def _guarded_step(trainer: Trainer, run: RunDir) -> Step:
    try:
        return trainer.step()
    except TrainingError as error:
        saved = list_checkpoints(run.checkpoints)
        last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        raise TrainingError(f"{error}; {last}") from error


def _emit(record: dict[str, Any], sink: MetricsSink | None, callbacks: Callbacks) -> None:
    if sink is not None:
        sink.write(record)
    callbacks.on_record(record)


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _mean_max_vio(losses: list[StepLosses], layers: int) -> list[float]:
    """Per layer the mean over steps of each step's MaxVio, which no pooling of steps makes smaller."""
    return torch.tensor([load_figures(x.counts_lE[:layers]).max_vio for x in losses]).mean(dim=0).tolist()


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())


_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collect the signals that mean "leave" instead of dying of them; a second SIGINT interrupts as usual.

    One that is ignored stays so (nohup, a job in the background), and threads other than the main one may not
    touch any.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _STOP}
        before = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
