"""Destinations of a run's figures: metrics.jsonl, and other loggers that train.loggers names.

One JSON object a line. Losses are nats per token; `seconds` is training time without validation.

    {"kind": "train", "step", "seconds", "tokens", "loss", "learning_rate", "grad_norm",
     "tokens_per_second", "balance": {name: raw loss}, "max_vio": [per MoE layer], "dead_experts": [...],
     "load_entropy": [...], "dropped": [...], "mtp_loss" where the model has MTP layers,
     "router": {name: loss} where routers have losses of their own,
     "attention": {"max_vio", "dead_experts", "load_entropy"} with a value per mixture of attention}
        over the steps since the line before: means, dead_experts and load_entropy of the pooled counts
    {"kind": "routing", "step", "tokens_per_expert": [[E] per MoE layer]}     likewise
    {"kind": "alarm", "step", "alarm": route_collapse | dying_experts | exploding_logits | bias_runaway |
     domain_starvation, "state": "raised" | "ended", "layers": [indices in the model], "domain": name or "",
     "values": [per layer], "threshold", "text"; of a raised one "cause" and "knob" too; "part": "attention"
     where it is about mixtures of attention}
        written once when it starts and once when it ends; config/alarms.py explains the figures
    {"kind": "eval", "step", "seconds", "loss", "bits_per_byte",
     "domains": {name: {"bits_per_byte", "bytes", "tokens"}}}   of train.eval_tokens of text
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moeworks.config import RunConfig
from moeworks.config.codec import to_dict
from moeworks.errors import DataError, require
from moeworks.records import json_text

Logger = Callable[[dict[str, Any]], None]


class MetricsSink:
    """Appends records to metrics.jsonl and hands them to the loggers."""

    def __init__(self, path: Path, loggers: list[Logger], *, keep_bytes: int = 0) -> None:
        """Open `path`, keeping its first `keep_bytes` bytes, which the checkpoint accounts for.

        Raises DataError, here and later, when the disk refuses.
        """
        self._path, self._loggers = path, loggers
        with self._disk():
            self._file = path.open("ab")
            # Truncating a file that was shortened by hand must not extend it with zeros.
            self._file.truncate(min(keep_bytes, path.stat().st_size))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it is in the file when this returns."""
        with self._disk():
            self._file.write(json_text(record, indent=None, ascii_only=True).encode() + b"\n")
            self._file.flush()
        for logger in self._loggers:
            logger(record)

    def sync(self) -> int:
        """Make the file durable and return its length in bytes, for the checkpoint."""
        with self._disk():
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        with self._disk():
            self._file.close()

    @contextmanager
    def _disk(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror}") from error


def open_loggers(config: RunConfig, root: Path) -> list[Logger]:
    """The loggers that train.loggers names. Raises MissingDependencyError when one is not installed."""
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [makers[name](config, root) for name in config.train.loggers]


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record under slash-separated names."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            numbers |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            numbers |= flatten({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + key] = value
    return numbers


def _tensorboard(config: RunConfig, root: Path) -> Logger:
    writer = require("torch.utils.tensorboard", extra="tensorboard").SummaryWriter(root / "tensorboard")

    def log(record: dict[str, Any]) -> None:
        for name, value in flatten(record).items():
            if name != "step":
                writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        writer.flush()

    return log


def _wandb(config: RunConfig, root: Path) -> Logger:
    run = require("wandb", extra="wandb").init(
        project="moeworks",
        id=root.name,
        name=root.name,
        dir=str(root),
        config=to_dict(config),
        resume="allow",
    )

    def log(record: dict[str, Any]) -> None:
        numbers = {f"{record['kind']}/{k}": v for k, v in flatten(record).items() if k != "step"}
        run.log(numbers, step=record["step"])

    return log
