"""The main figures of a run as one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeworks.report.picture import Drawing, draw_heat, draw_layers, draw_lines, png
from moeworks.report.run.heat_maps import load_windows
from moeworks.report.run.names import layer_names
from moeworks.report.run.run_data import RunData


def run_png(run: RunData) -> bytes:
    """A PNG. Raises MissingDependencyError without matplotlib."""
    return png(f"Training of {run.name}", _drawings(run))


def _drawings(run: RunData) -> Sequence[Drawing]:
    steps = [record.step for record in run.train]
    windows = load_windows(run)

    def loss(axes: Any) -> None:
        losses = np.array([record.loss for record in run.train])
        draw_lines(axes, steps, {"_loss": losses}, "Training loss", ("training step", "nats per token"))

    def load(axes: Any) -> None:
        title = f"Load of every expert, {windows[-1].steps}"
        draw_heat(axes, windows[-1].load, layer_names(run), title, "load (1 = fair share)")

    def balance(axes: Any) -> None:
        values = np.array([record.max_vio for record in run.train]).T
        labels = ("training step", "MaxVio (0 = balanced)")
        draw_layers(axes, steps, values, layer_names(run), "Busiest expert", labels)

    def validation(axes: Any) -> None:
        bits = np.array([record.bits_per_byte for record in run.evals])
        x = [record.step for record in run.evals]
        draw_lines(axes, x, {"_bits": bits}, "Validation", ("training step", "bits per byte"))

    has_load = bool(run.moe_layers and windows)
    chosen = [
        load if has_load else None,
        loss if run.train else None,
        balance if run.train and run.moe_layers else None,
        validation if run.evals else None,
    ]
    return [draw for draw in chosen if draw is not None] or [_nothing]


def _nothing(axes: Any) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, "The run has logged nothing yet.", ha="center")
