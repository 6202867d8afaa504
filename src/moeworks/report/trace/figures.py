"""Figures of a trace that do not change: lines over layers, distances and ranks."""

from typing import Any

import numpy as np

from moeworks.analyse.confidence import QUANTILES
from moeworks.analyse.intervals import Interval
from moeworks.analyse.verdicts.words import finite
from moeworks.report.fragments import inert
from moeworks.report.heat_map import colorbar, heat_map, row_height, rows
from moeworks.report.lines import axis, line_figure
from moeworks.report.theme import SATURATION, Figure, depth_colors
from moeworks.report.trace.subject import Subject

_CHANCE = {"color": "#8b929b", "width": 2, "dash": "dash"}
_BAND = {"line": {"width": 0}, "fill": "tonexty", "fillcolor": "rgba(139,146,155,0.3)"}


def _line(name: str, x: Any, y: Any, **style: Any) -> Figure:
    values = [finite(float(value), 5) for value in y]
    mode = "lines+markers" if len(values) <= 64 else "lines"
    return {
        "type": "scatter", "mode": mode, "name": inert(name), "x": list(x), "y": values, "line": {"width": 2},
    } | style  # fmt: skip


def _hover(what: str, unit: str = "") -> str:
    return f"Layer %{{x}}<br>{what}: %{{y:.3g}}{unit}<extra></extra>"


def _over_layers(subject: Subject, lines: list[Figure], y_title: str, **layout: Any) -> Figure:
    for line in lines:
        line.setdefault("hovertemplate", _hover(line["name"]))
    base: dict[str, Any] = {"showlegend": len(lines) > 1, "hovermode": "closest"}
    figure = line_figure(lines, y_title, "", "layer", **base | layout)
    layers = subject.inspection.header.layers
    if len(layers) <= 12:
        figure["layout"]["xaxis"] |= {"tickvals": list(layers)}
    return figure


def _with_interval(name: str, x: Any, interval: Interval) -> Figure:
    if not interval.known.any():
        return _line(name, x, interval.estimate)
    error = {
        "type": "data", "symmetric": False, "width": 3, "thickness": 1.5,
        "array": [finite(float(v), 4) for v in interval.high - interval.estimate],
        "arrayminus": [finite(float(v), 4) for v in interval.estimate - interval.low],
    }  # fmt: skip
    return _line(name, x, interval.estimate, error_y=error)


def draw_map(subject: Subject) -> Figure:
    """Load of every expert; the page's script puts the other metrics in its place."""
    layers = subject.layers
    experts = [str(i) for i in range(subject.inspection.header.num_experts)]
    values = {"type": "heatmap", "z": rows(subject.inspection.experts.load, 3)}
    return heat_map(
        experts,
        layers,
        [],
        {"data": [values]},
        130 + len(layers) * row_height(len(layers)),
        zmin=0,
        zmax=SATURATION,
        hovertemplate="%{y}, expert %{x}: %{z:.3g}<extra></extra>",
        colorbar=colorbar("load (1 = fair share)", (0, 1, 2, 3), ("0", "1", "2", "3 +")),
    )


def draw_max_vio(subject: Subject) -> Figure:
    """MaxVio of the whole trace with its interval, and the mean of batches."""
    analysis, x = subject.inspection.analysis, subject.inspection.header.layers
    whole = _with_interval("whole trace", x, analysis.max_vio)
    batches = _line(f"batches of {analysis.batch_load.batch_tokens:,} tokens", x, analysis.batch_load.max_vio)
    return _over_layers(
        subject, [whole, batches], "MaxVio (0 = balanced)", yaxis=axis("MaxVio", rangemode="tozero")
    )


def draw_effective(subject: Subject) -> Figure:
    """Experts that a balanced layer with this entropy would have, and those that are not dead."""
    load, x = subject.inspection.analysis.load, subject.inspection.header.layers
    experts = subject.inspection.header.num_experts
    lines = [
        _line("effective experts", x, load.effective_experts),
        _line("alive", x, experts - load.dead),
        _line("all", x, [experts] * len(x), line=_CHANCE, mode="lines"),
    ]
    return _over_layers(subject, lines, "experts", yaxis=axis("experts", rangemode="tozero"))


def draw_information(subject: Subject) -> Figure | None:
    """Bits about the domain, about it given the token, and about the token."""
    table, x = subject.inspection.analysis.information, subject.inspection.header.layers
    if table is None:
        return None
    lines = [_line("domain, above its null", x, table.excess())]
    if table.token is not None:
        lines.append(_line("domain beyond the words", x, table.excess_given_token()))
        lines.append(_line("token id (too high where tokens are rare)", x, table.token, line={"dash": "dot"}))
    return _over_layers(subject, lines, "bits per choice", yaxis=axis("bits", rangemode="tozero"))


def draw_repeats(subject: Subject) -> Figure | None:
    """Repeat rate with interval, between its two kinds of chance."""
    table, x = subject.inspection.analysis.repeats, subject.inspection.header.layers
    if table is None:
        return None
    lines = [
        _with_interval("neighbours", x, table.repeat_rate),
        _line("two tokens of one document", x, table.document_chance, line={"width": 2, "dash": "dot"}),
        _line("chance by load", x, table.chance, line=_CHANCE),
    ]
    title = "share of experts kept"
    return _over_layers(subject, lines, title, yaxis=axis(title, rangemode="tozero"))


def _by_layer(subject: Subject, x: Any, values: np.ndarray) -> list[Figure]:
    """A line for each layer, blue to pink."""
    colors = depth_colors(len(subject.layers))
    return [
        _line(name, x, row, line={"width": 1.5, "color": color})
        for name, row, color in zip(subject.layers, values, colors, strict=True)
    ]


def _log_axis(title: str, places: Any) -> Figure:
    return axis(title, type="log", tickvals=list(places), ticktext=[f"{place:,}" for place in places])


def draw_lags(subject: Subject) -> Figure | None:
    """Overlap over distance in the text."""
    table = subject.inspection.analysis.lags
    if not np.isfinite(table.overlap).any():
        return None
    lines = _by_layer(subject, table.lags, table.overlap)
    for line in lines:
        line["hovertemplate"] = f"{line['name']}, %{{x}} tokens apart<br>overlap %{{y:.3g}}<extra></extra>"
    chance = [float(table.chance.mean())] * len(table.lags)
    mean = _line("chance, mean of layers", table.lags, chance, line=_CHANCE, mode="lines")
    mean["hovertemplate"] = "chance, mean of the layers: %{y:.3g}<extra></extra>"
    title = "share of experts in common"
    return line_figure(
        [*lines, mean], title, "", xaxis=_log_axis("tokens apart", table.lags),
        yaxis=axis(title, rangemode="tozero"), hovermode="closest", showlegend=False,
    )  # fmt: skip


def draw_working_sets(subject: Subject) -> Figure:
    """Distinct experts over the length of a window."""
    table = subject.inspection.analysis.working_sets
    lines = _by_layer(subject, table.windows, table.mean)
    for line in lines:
        line["hovertemplate"] = f"{line['name']}, %{{x}} tokens<br>%{{y:.3g}} experts<extra></extra>"
    even = _line("even load, independent tokens", table.windows, table.uniform, line=_CHANCE, mode="lines")
    even["hovertemplate"] = "even load, %{x} independent tokens: %{y:.3g}<extra></extra>"
    return line_figure(
        [*lines, even], "distinct experts", "", xaxis=_log_axis("tokens in a row", table.windows),
        yaxis=axis("distinct experts", rangemode="tozero"), hovermode="closest", showlegend=False,
    )  # fmt: skip


def draw_drift(subject: Subject) -> Figure | None:
    """Divergence of load by position, and what sampling alone gives."""
    table = subject.inspection.analysis.drift
    if len(table.tokens) < 2:
        return None
    places = [f"{a:,}–{b - 1:,}" for a, b in zip(table.edges[:-1], table.edges[1:], strict=True)]
    lines = _by_layer(subject, places, table.divergence)
    for line in lines:
        line["hovertemplate"] = f"{line['name']}, positions %{{x}}<br>%{{y:.3g}} bits<extra></extra>"
    null = _line(
        "sampling alone, mean of layers", places, table.divergence_null.mean(axis=0), line=_CHANCE,
    )  # fmt: skip
    null["hovertemplate"] = "sampling alone, positions %{x}: %{y:.3g} bits<extra></extra>"
    title = "divergence (bits)"
    return line_figure(
        [*lines, null], title, "", xaxis=axis("position in the context", type="category"),
        yaxis=axis(title, rangemode="tozero"), hovermode="closest", showlegend=False,
    )  # fmt: skip


def draw_weights(subject: Subject) -> Figure | None:
    """Share of the weight that each rank has, stacked."""
    table, x = subject.inspection.analysis.confidence, list(subject.inspection.header.layers)
    if table.weight_by_rank is None:
        return None
    ranks = table.weight_by_rank.shape[1]
    colors = depth_colors(ranks)
    bars = [
        {
            "type": "bar", "name": f"choice {rank + 1}", "x": x, "marker": {"color": colors[rank]},
            "y": [finite(float(v), 4) for v in table.weight_by_rank[:, rank]],
            "hovertemplate": f"Layer %{{x}}<br>choice {rank + 1} has %{{y:.1%}} of the weight<extra></extra>",
        }
        for rank in range(ranks)
    ]  # fmt: skip
    figure = _over_layers(subject, bars, "share of the weight", barmode="stack", bargap=0.15)
    figure["layout"]["yaxis"] |= {"tickformat": ".0%", "range": [0, 1]}
    return figure


def draw_quantiles(subject: Subject, field: str, y_title: str) -> Figure | None:
    """Quantiles over tokens of entropy or margin: a band from 5 to 95 %, one inside it, and the median."""
    values = getattr(subject.inspection.analysis.confidence, field)
    present = None if values is None else np.isfinite(values).all(axis=1)
    if values is None or present is None or not present.any():
        return None
    x = [number for number, there in zip(subject.inspection.header.layers, present, strict=True) if there]
    values = values[present]
    names = [f"{100 * q:.0f} % of tokens lie below" for q in QUANTILES]
    low, lower, middle, upper, high = (values[:, i] for i in range(5))
    lines = [
        _line(names[0], x, low, line={"width": 0}, mode="lines", showlegend=False),
        _line(names[4], x, high, mode="lines", showlegend=False, **_BAND),
        _line(names[1], x, lower, line={"width": 0}, mode="lines", showlegend=False),
        _line(names[3], x, upper, mode="lines", showlegend=False, **_BAND),
        _line("median", x, middle),
    ]
    return _over_layers(subject, lines, y_title, showlegend=False)


def draw_overlap(subject: Subject) -> Figure | None:
    """Overlap of two traces on the same tokens."""
    compared = subject.inspection.comparison
    if compared is None or compared.overlap is None or compared.chance is None or compared.same_first is None:
        return None
    x = compared.layers
    lines = [
        _with_interval("experts in common", x, compared.overlap),
        _line("same first choice", x, compared.same_first, line={"width": 2, "dash": "dot"}),
        _line("chance by load", x, compared.chance, line=_CHANCE),
    ]
    figure = _over_layers(subject, lines, "share")
    figure["layout"]["yaxis"] |= {"range": [0, 1.05]}
    return figure


def draw_both(subject: Subject, field: str, y_title: str) -> Figure | None:
    """A figure of load of both traces, layer by layer."""
    compared = subject.inspection.comparison
    if compared is None:
        return None
    sides = ((subject.name, compared.left_load), (subject.other_name, compared.right_load))
    lines = [_line(name, load.layers, getattr(load, field)) for name, load in sides]
    for line, dash in zip(lines, ("solid", "dot"), strict=True):
        line["line"] = {"width": 2, "dash": dash}
    return _over_layers(subject, lines, y_title, yaxis=axis(y_title, rangemode="tozero"))


def draw_divergence(subject: Subject) -> Figure | None:
    """How far the loads are apart."""
    compared = subject.inspection.comparison
    if compared is None or compared.moved is None or compared.divergence is None:
        return None
    lines = [
        _line("share of the work that moved", compared.layers, compared.moved),
        _line("divergence (bits)", compared.layers, compared.divergence, line={"width": 2, "dash": "dot"}),
    ]
    return _over_layers(subject, lines, "difference", yaxis=axis("difference", rangemode="tozero"))
