"""Figures that several labs have, as functions of their results."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moeworks.labs.figures import Bar, Figure, Film, IntervalFigure, LineFigure, Series, series
from moeworks.labs.intervals import Estimate
from moeworks.labs.results import Results

Draw = Callable[[Results], Figure | None]
FILM_FRAMES = 16


def bits_figure(results: Results) -> IntervalFigure | None:
    """Each arm's difference in bits per byte from the baseline."""
    found = [(arm, results.difference(arm)) for arm in results.arms if arm != results.baseline]
    bars = tuple(_bar(arm, estimate) for arm, estimate in found if estimate is not None)
    if not bars:
        return None
    return IntervalFigure(
        key="bits",
        title="Loss beside the baseline",
        caption=f"Bits per byte of held-out text less those of '{results.baseline}'; left is better.",
        x_title=f"bits per byte, less '{results.baseline}'",
        bars=bars,
        reference=0.0,
    )


def metric_figure(metric: str, title: str, caption: str, x_title: str) -> Draw:
    """A figure of one metric of all arms."""

    def draw(results: Results) -> IntervalFigure | None:
        found = [(arm, results.metric(arm, metric)) for arm in results.arms]
        bars = tuple(_bar(arm, estimate) for arm, estimate in found if estimate is not None)
        if not bars:
            return None
        return IntervalFigure(key=metric, title=title, caption=caption, x_title=x_title, bars=bars)

    return draw


def loss_against(axis: str, title: str, x_title: str) -> Draw:
    """Held-out loss over training, mean over seeds, against "flops" (of training), "cpu_seconds" or "tokens"
    of each arm."""

    def draw(results: Results) -> LineFigure:
        return LineFigure(
            key=f"loss_{axis}",
            title=title,
            caption="Nats per token on a part of the held-out text, mean over seeds.",
            x_title=x_title,
            y_title="held-out loss, nats per token",
            series=tuple(_loss_series(results, arm, axis) for arm in results.arms),
            log_x=True,
        )

    return draw


def load_over_training(figure: str, title: str, caption: str, y_title: str) -> Draw:
    """A figure of load ("max_vio", "dead", ...), mean over layers and seeds, over the steps of every arm."""

    def draw(results: Results) -> LineFigure | None:
        lines = tuple(
            _over_steps(arm, results.cells(arm), "load", figure)
            for arm in results.arms
            if results.cells(arm)[0]["load"]
        )
        if not lines:
            return None
        return LineFigure(
            key=f"{figure}_over_training",
            title=title,
            caption=caption,
            x_title="training step",
            y_title=y_title,
            series=lines,
        )

    return draw


def layers_over_training(source: str, figure: str, title: str, caption: str, y_title: str) -> Draw:
    """A figure per layer of the baseline arm, mean over seeds; `source` is "load" or "signal"."""

    def draw(results: Results) -> LineFigure | None:
        if results.baseline not in results.arms:
            return None
        cells = results.cells(results.baseline)
        rows = [_table(cell[source], figure) for cell in cells if cell[source]]
        if not rows:
            return None
        shortest = min(len(row) for row in rows)
        mean = np.mean([row[:shortest] for row in rows], axis=0)
        steps = [row["step"] for row in cells[0][source]][:shortest]
        return LineFigure(
            key=f"layers_{figure}",
            title=title,
            caption=caption,
            x_title="training step",
            y_title=y_title,
            series=tuple(series(f"MoE layer {i}", steps, mean[:, i]) for i in range(mean.shape[1])),
        )

    return draw


def load_film(arms: Sequence[str]) -> Draw:
    """A film of layer x expert load over training, one seed of some arms."""

    def draw(results: Results) -> Film | None:
        shown = [arm for arm in arms if arm in results.arms and results.cells(arm)[0]["load"]]
        if not shown:
            return None
        tracks = [results.cells(arm)[0]["load"] for arm in shown]
        count = min(len(track) for track in tracks)
        picked = np.unique(np.linspace(0, count - 1, min(FILM_FRAMES, count)).round().astype(int))
        return Film(
            key="film",
            title="Who works: layer × expert over training",
            caption="Load of every expert, 1 is the balanced share; one seed.",
            frames=tuple(f"step {tracks[0][i]['step']}" for i in picked),
            names=tuple(shown),
            load=tuple(tuple(_relative(track[i]["counts"]) for i in picked) for track in tracks),
        )

    return draw


def _bar(name: str, estimate: Estimate) -> Bar:
    return Bar(name=name, value=estimate.value, low=estimate.low, high=estimate.high)


def _loss_series(results: Results, arm: str, axis: str) -> Series:
    cells = results.cells(arm)
    tracks = [[point for point in cell["curve"] if "loss" in point] for cell in cells]
    count = min(len(track) for track in tracks)
    losses = np.mean([[point["loss"] for point in track[:count]] for track in tracks], axis=0)
    if axis == "flops":
        x = [point["tokens"] * cells[0]["count"]["flops"] for point in tracks[0][:count]]
    else:
        x = np.mean([[point[axis] for point in track[:count]] for track in tracks], axis=0).tolist()
    return series(arm, x, losses)


def _over_steps(name: str, cells: Sequence[Any], source: str, figure: str) -> Series:
    rows = [_table(cell[source], figure).mean(axis=1) for cell in cells]
    shortest = min(len(row) for row in rows)
    steps = [point["step"] for point in cells[0][source]][:shortest]
    return series(name, steps, np.mean([row[:shortest] for row in rows], axis=0))


def _table(points: Sequence[Any], figure: str) -> np.ndarray:
    """[points, l]"""
    return np.array([point[figure] for point in points], dtype=np.float64)


def _relative(counts: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
    table = np.array(counts, dtype=np.float64)
    load = table / np.maximum(table.mean(axis=1, keepdims=True), 1e-12)
    return tuple(tuple(round(float(value), 2) for value in row) for row in load)
