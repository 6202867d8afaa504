"""What training leaves behind at some points of a cell: loss, time, and the load of every expert."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeworks.analyse.load import DEAD_LOAD, load_entropy, max_vio
from moeworks.train.trainer import Step

POINTS = 24
"""Points of a cell's curves."""
LATE = 0.25
"""Share of the steps, the last ones, that the metrics of load are means over."""


def points(steps: int, count: int = POINTS) -> set[int]:
    """Steps after which a point is taken: more often at first, where balance changes most, and at the end."""
    spread = np.linspace(0, 1, min(count, steps) + 1)[1:] ** 1.5
    return {max(int(step), 1) for step in np.ceil(spread * steps)}


@dataclass
class Meter:
    """Collects steps; `curve` and `load` have an entry for each point."""

    layers: int
    curve: list[dict[str, Any]] = field(default_factory=list)
    load: list[dict[str, Any]] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _counts: list[np.ndarray] = field(default_factory=list)
    _history: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """A step was taken."""
        counts_lE = step.losses.counts_lE[: self.layers].numpy()
        self._losses.append(float(step.losses.loss))
        if self.layers:
            self._counts.append(counts_lE)
            self._history.append(step_figures(counts_lE, step.losses.dropped_l[: self.layers].numpy()))

    def point(self, step: int, tokens: int, cpu_seconds: float) -> None:
        """Close what was collected since the last point."""
        self.curve.append(
            {
                "step": step,
                "tokens": tokens,
                "cpu_seconds": round(cpu_seconds, 3),
                "train_loss": float(np.mean(self._losses)),
            }
        )
        if self.layers:
            counts_lE = np.sum(self._counts, axis=0)
            recent = self._history[-len(self._losses) :]
            means = {name: np.mean([row[name] for row in recent], axis=0).tolist() for name in recent[0]}
            self.load.append({"step": step, "counts": counts_lE.tolist(), **means})
        self._losses, self._counts = [], []

    def late(self) -> dict[str, list[float]]:
        """Per layer (l): figures of single steps, averaged over the last steps; empty in a dense model."""
        if not self._history:
            return {}
        rows = self._history[-max(round(LATE * len(self._history)), 1) :]
        return {name: np.mean([row[name] for row in rows], axis=0).tolist() for name in rows[0]}

    def early_max_vio(self) -> list[float]:
        """Per layer: MaxVio of single steps, averaged over the first half of training."""
        rows = self._history[: max(len(self._history) // 2, 1)]
        return np.mean([row["max_vio"] for row in rows], axis=0).tolist() if rows else []


def step_figures(counts_lE: np.ndarray, dropped_l: np.ndarray) -> dict[str, np.ndarray]:
    """Per layer: MaxVio, share of dead experts, normalised entropy of the load, dropped share."""
    counts = counts_lE.astype(np.float64)
    mean_l1 = np.maximum(counts.mean(axis=1, keepdims=True), 1e-12)
    return {
        "max_vio": max_vio(counts),
        "dead": (counts < DEAD_LOAD * mean_l1).mean(axis=1),
        "load_entropy": load_entropy(counts) / np.log(max(counts.shape[1], 2)),
        "dropped": dropped_l.astype(np.float64),
    }
