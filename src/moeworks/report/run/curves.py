"""Curves over training steps. draw_* return plotly figures as plain dicts, without colours of a theme."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from moeworks.analyse.verdicts.words import finite
from moeworks.report.fragments import inert
from moeworks.report.lines import axis, line_figure
from moeworks.report.run.names import layer_names
from moeworks.report.run.run_data import EvalRecord, RunData, TrainRecord
from moeworks.report.theme import Figure, depth_colors

MAX_POINTS = 20_000
"""Points of one figure: a long run's curves are thinned so that the page stays small."""

BALANCE_NAMES = {
    "switch": "Switch, per micro-batch",
    "global_batch": "global batch",
    "sequence": "per sequence",
    "device": "per device",
    "communication": "communication",
    "entropy": "entropy",
    "importance": "importance",
    "load": "smooth load",
    "z": "router z-loss (right)",
}

T = TypeVar("T")


def thin(records: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the records, evenly spread, with the first and the last (limit >= 2)."""
    if len(records) <= limit:
        return list(records)
    return [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]


def _line(name: str, records: Sequence[Any], value: Callable[[Any], float], **style: Any) -> Figure:
    """A line over steps. A single point gets a marker, for a line through one point is invisible."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(records) <= 12 else "lines",
        "name": name,
        "x": [record.step for record in records],
        "y": [finite(value(record), 5) for record in records],
        "line": {"width": 2},
    } | style


def _draw_train(run: RunData, y_title: str, words: str, value: Callable[[TrainRecord], float]) -> Figure:
    return line_figure([_line(y_title, thin(run.train, MAX_POINTS), value)], y_title, words)


def draw_loss(run: RunData) -> Figure:
    """Training cross-entropy."""
    return _draw_train(run, "nats per token", "%{y:.3f} nats per token", lambda r: r.loss)


def draw_validation(run: RunData) -> Figure:
    """Validation bits per byte, always with a marker for each validation."""
    points: list[EvalRecord] = thin(run.evals, MAX_POINTS)
    line = _line("bits per byte", points, lambda r: r.bits_per_byte, mode="lines+markers")
    return line_figure([line], "bits per byte", "%{y:.3f} bits per byte of unseen text")


def draw_learning_rate(run: RunData) -> Figure:
    """The learning rate of the schedule."""
    return _draw_train(run, "learning rate", "learning rate %{y:.3g}", lambda r: r.learning_rate)


def draw_grad_norm(run: RunData) -> Figure:
    """Global norm of the gradient before clipping."""
    return _draw_train(run, "gradient norm", "gradient norm %{y:.3g}", lambda r: r.grad_norm)


def draw_speed(run: RunData) -> Figure:
    """Training tokens per second."""
    words = "%{y:,.0f} tokens per second"
    figure = _draw_train(run, "tokens per second", words, lambda r: r.tokens_per_second)
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return figure


def balance_names(run: RunData) -> list[str]:
    """Names of the balance losses that any logged step reports, in the order of their first appearance."""
    return list(dict.fromkeys(name for record in run.train for name in record.balance))


def draw_balance(run: RunData) -> Figure:
    """Balance losses, 1.0 = balanced; the router z-loss, whose best value is 0, on an axis of its own."""
    names = balance_names(run)
    records = thin(run.train, MAX_POINTS // max(len(names), 1))
    lines = []
    for name in names:
        label = inert(BALANCE_NAMES.get(name, name.replace("_", " ")))
        style = {"yaxis": "y2", "line": {"width": 2, "dash": "dot"}} if name == "z" else {}
        line = _line(label, records, lambda r, name=name: r.balance.get(name, float("nan")), **style)
        lines.append(line | {"hovertemplate": f"Step %{{x:,}}<br>{label}: %{{y:.3f}}<extra></extra>"})
    right = {"overlaying": "y", "side": "right", "tickmode": "auto", "rangemode": "tozero", "showgrid": False}
    axes: dict[str, Any] = {"yaxis2": axis("router z-loss", **right)} if "z" in names else {}
    return line_figure(lines, "balance loss (1 = balanced)", "%{y:.3f}", showlegend=True, **axes)


def _draw_layers(run: RunData, field: str, y_title: str, words: str, **style: Any) -> Figure:
    """A line per MoE layer of a TrainRecord field that has a value per MoE layer."""
    names = layer_names(run)
    records = thin(run.train, max(2, MAX_POINTS // len(names)))
    lines = [
        _line(name, records, lambda r, n=n: getattr(r, field)[n], **style)
        | {"hovertemplate": f"Step %{{x:,}}, {name}<br>{words}<extra></extra>"}
        | {"line": {"width": 2, "color": color}}
        for n, (name, color) in enumerate(zip(names, depth_colors(len(names)), strict=True))
    ]
    return line_figure(lines, y_title, words, yaxis=axis(y_title, rangemode="tozero"))


def draw_max_vio(run: RunData) -> Figure:
    """MaxVio of each MoE layer."""
    words = "busiest expert: %{y:.2f} above its fair share of 1"
    return _draw_layers(run, "max_vio", "MaxVio (0 = balanced)", words)


def draw_dead_experts(run: RunData) -> Figure:
    """Experts without a token, stacked over the MoE layers."""
    words = "%{y:.0f} experts without a token"
    figure = _draw_layers(run, "dead_experts", "dead experts", words, stackgroup="dead")
    worst = max((sum(record.dead_experts) for record in run.train), default=0)
    figure["layout"]["yaxis"] |= {"range": [0, max(1.0, 1.1 * worst)]} | ({"dtick": 1} if worst <= 5 else {})
    return figure


def draw_load_entropy(run: RunData) -> Figure:
    """Normalised entropy of the load of each MoE layer: 1 is balanced, 0 is one expert doing everything."""
    figure = _draw_layers(run, "load_entropy", "load entropy (1 = balanced)", "load entropy %{y:.3f}")
    figure["layout"]["yaxis"]["rangemode"] = "normal"
    return figure


def draw_dropped(run: RunData) -> Figure:
    """Share of the assignments of each MoE layer that found their expert full."""
    figure = _draw_layers(run, "dropped", "dropped", "%{y:.2%} of the assignments dropped")
    figure["layout"]["yaxis"]["tickformat"] = ".1%"
    return figure
