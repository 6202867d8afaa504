"""The training loop: steps, lines of metrics, validations, checkpoints, and a clean way out."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeworks.checkpoint import (
    checkpoint_dir,
    list_checkpoints,
    prune_checkpoints,
    write_checkpoint,
)
from moeworks.config import RunConfig
from moeworks.errors import TrainingError
from moeworks.layers.router import expert_bias_of
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.load import load_figures, max_violation
from moeworks.train.alarms import AlarmState, Figures, alarm_records
from moeworks.train.metrics import MetricsSink
from moeworks.train.run_dir import RunDir
from moeworks.train.trainer import Step, Trainer


@dataclass(frozen=True)
class Callbacks:
    """Functions that the caller gives to the loop, which imports neither evaluation nor the terminal."""

    evaluate: Callable[[Decoder], dict[str, Any]]
    """Validate; returns the fields of an eval record."""
    on_step: Callable[[Trainer, Step], None]
    """Called after every step."""
    on_record: Callable[[dict[str, Any]], None]
    """Called after every record of metrics."""
    on_signal: Callable[[int], None] = lambda number: None
    """Called with the signal's number when a signal stops the run."""


class Interval:
    """Sums since the last line of metrics: all of them tensors, so that nothing waits for the device."""

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        """Start empty, or from the `to_json` of an interrupted run's interval."""
        saved = saved or {}
        self.steps: int = saved.get("steps", 0)
        self.seconds: float = saved.get("seconds", 0.0)
        self._sums = {name: _tensor(value) for name, value in saved.get("sums", {}).items()}

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON, exact, for the checkpoint."""
        sums = {name: value.tolist() for name, value in self._sums.items()}
        return {"steps": self.steps, "seconds": self.seconds, "sums": sums}

    def add(self, step: Step, seconds: float, config: RunConfig) -> None:
        """Count one step, which took `seconds`."""
        self.steps += 1
        self.seconds += seconds
        for name, value in _figures(step, len(config.model.moe_layers)).items():
            # Tensors are empty for dense models, and for models that are not watched.
            if value.numel():
                wide = value.double() if value.is_floating_point() else value
                before = self._sums.get(name)
                self._sums[name] = wide if before is None else before.to(wide.device) + wide

    def records(self, trainer: Trainer, learning_rate: float) -> list[dict[str, Any]]:
        """The train record of these steps and, for a MoE, the routing record and what the alarms say."""
        config, progress, sums = trainer.config, trainer.progress, self._sums
        counts_lE = sums.get("counts_lE", torch.zeros(0, 0, dtype=torch.int64))
        tokens = self.steps * config.train.batch_size * config.train.seq_len
        record: dict[str, Any] = {
            "kind": "train",
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "loss": self._mean("loss"),
            "learning_rate": learning_rate,
            "grad_norm": self._mean("grad_norm"),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 1),
            "balance": self._means("balance"),
            **vars(load_figures(counts_lE)) | {"max_vio": self._mean("max_vio_l", [])},
            "dropped": self._mean("dropped_l", []),
        }
        if router := self._means("router"):
            record["router"] = router
        if config.model.num_mtp_layers:
            record["mtp_loss"] = self._mean("mtp")
        if attention := self._attention():
            record["attention"] = attention
        routing = {"kind": "routing", "step": progress.step, "tokens_per_expert": counts_lE.tolist()}
        return [record, *([routing] if counts_lE.numel() else []), *self._alarms(trainer, counts_lE)]

    def _mean(self, name: str, absent: Any = None) -> Any:
        return (self._sums[name] / self.steps).tolist() if name in self._sums else absent

    def _means(self, group: str) -> dict[str, float]:
        """The means of all figures under `group/`, by their own names."""
        names = [name for name in self._sums if name.startswith(f"{group}/")]
        return {name.removeprefix(f"{group}/"): self._mean(name) for name in names}

    def _attention_counts(self) -> list[Tensor]:
        return [value for name, value in self._sums.items() if name.startswith("attention_counts/")]

    def _attention(self) -> dict[str, list[Any]]:
        """The load figures of mixtures of attention, one value per layer that has one."""
        each = [vars(load_figures(counts_E[None])) for counts_E in self._attention_counts()]
        return {name: [figures[name][0] for figures in each] for name in each[0]} if each else {}

    def _alarms(self, trainer: Trainer, counts_lE: Tensor) -> list[dict[str, Any]]:
        """The alarms that these steps raise and end; their state goes into the progress."""
        sizes = [self._sums.get(name) for name in ("logit_size_l", "attention_logit_size_l")]
        if all(size is None for size in sizes):
            return []
        routers = [moe.router for moe in moe_modules(trainer.model)][: len(counts_lE)]
        biases = [expert_bias_of(router) for router in routers]
        spreads = [b.max() - b.min() for b in biases if b is not None]
        logit_size_l, attention_logit_size_l = (
            torch.zeros(0) if size is None else size / self.steps for size in sizes
        )
        figures = Figures(
            counts_lE=counts_lE,
            logit_size_l=logit_size_l,
            bias_spread_l=torch.stack(spreads) if spreads else None,
            domain_counts=self._sums.get("domain_counts"),
            attention_counts=tuple(self._attention_counts()),
            attention_logit_size_l=attention_logit_size_l,
        )
        progress, state = trainer.progress, AlarmState.from_json(trainer.progress.alarms)
        domains = trainer.corpus.domains
        state, records = alarm_records(state, figures, trainer.config, domains, progress.step)
        progress.alarms = state.to_json()
        return records


def _figures(step: Step, layers: int) -> dict[str, Tensor]:
    """Contribution of a step to the sums, by name; the first `layers` MoE layers are not MTP layers."""
    losses, watched = step.losses, step.losses.watched
    counts_lE = losses.counts_lE[:layers]
    figures = {
        "loss": losses.loss,
        "grad_norm": step.grad_norm,
        "mtp": losses.mtp,
        "counts_lE": counts_lE,
        # MaxVio is averaged over steps: pooling the counts of steps first would make it smaller.
        "max_vio_l": max_violation(counts_lE) if counts_lE.numel() else losses.loss.new_zeros(0),
        "dropped_l": losses.dropped_l[:layers],
        **{f"balance/{name}": loss for name, loss in losses.balance.items()},
        **{f"router/{name}": loss for name, loss in losses.router.items()},
        **{f"attention_counts/{n:04}": counts_E for n, counts_E in enumerate(losses.attention_counts)},
    }
    return figures if watched is None else figures | vars(watched)


def _tensor(value: Any) -> Tensor:
    """A sum as it was before `tolist`: int64 of whole numbers, which are counts, else float64."""
    return torch.from_numpy(np.array(value))


def train(trainer: Trainer, run: RunDir, sink: MetricsSink | None, callbacks: Callbacks) -> bool:
    """Run to train.steps; False when a signal stopped it first (the state is saved in either case).

    `sink` is None on ranks that write nothing. Raises TrainingError on a loss or gradient that is not finite,
    naming the last good checkpoint.
    """
    config, progress = trainer.config.train, trainer.progress
    trainer.share_weights()
    with _signals() as stop:
        interval, progress.interval = Interval(progress.interval), {}
        while progress.step < config.steps:
            started = time.perf_counter()
            step = _guarded_step(trainer, run)
            seconds = time.perf_counter() - started
            progress.seconds += seconds
            interval.add(step, seconds, trainer.config)
            callbacks.on_step(trainer, step)
            stopping = trainer.world.any(bool(stop))
            validating = _due(progress.step, config.eval_every, config.steps)
            saving = _due(progress.step, config.checkpoint_every, config.steps)
            if saving or validating or _due(progress.step, config.log_every, config.steps):
                for record in interval.records(trainer, step.learning_rate):
                    _emit(record, sink, callbacks)
                interval = Interval()
            improved = validating and _evaluate(trainer, sink, callbacks)
            if stopping or saving or improved:
                # A stop does not end the interval: the resumed run continues it, as if it had never stopped.
                progress.interval = interval.to_json() if interval.steps else {}
                save(trainer, run, sink)
                progress.interval = {}
            if stop:
                callbacks.on_signal(stop[0])
            if stopping:
                return progress.step >= config.steps
    return True


def save(trainer: Trainer, run: RunDir, sink: MetricsSink | None) -> None:
    """Write a checkpoint of this step and prune older ones; the main rank writes, the others wait."""
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


_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collect the signals that ask the process to end; a second SIGINT interrupts as usual.

    Ignored signals stay ignored (nohup, background jobs). Outside the main thread nothing is changed, because
    Python allows it there only.
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
