"""Figures of lines: what the curves of a run and the figures of a trace share."""

import html
from typing import Any

from moeworks.report.theme import Figure

MAX_LEGEND = 12
"""More lines than this are told apart by hovering, not by a legend that fills the figure."""


def line_figure(
    lines: list[Figure], y_title: str, words: str, x_title: str = "training step", **layout: Any
) -> Figure:
    """Lines over a numeric axis; `words` is the hover text behind the place, with plotly's placeholders."""
    place = x_title.removeprefix("training ").capitalize()
    for line in lines:
        line.setdefault("hovertemplate", f"{place} %{{x:,}}<br>{words}<extra></extra>")
    base = {
        "height": 270,
        "margin": {"l": 10, "r": 12, "t": 10, "b": 10},
        # One line or two answer wherever the pointer is above them; of more, the nearest answers.
        "hovermode": "x" if len(lines) <= 2 else "closest",
        "showlegend": 1 < len(lines) <= MAX_LEGEND,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "xaxis": axis(x_title, tickformat=",d") | few_ticks(lines),
        "yaxis": axis(y_title),
    }
    return {"data": lines, "layout": base | layout}


def few_ticks(lines: list[Figure]) -> Figure:
    """For a few steps a tick at each: plotly would put some between them, at steps that do not exist."""
    steps = sorted({step for line in lines for step in line["x"]})
    return {"tickvals": steps} if len(steps) <= 4 else {}


def axis(title: str, **axis: Any) -> Figure:
    return {"title": {"text": title}, "automargin": True} | axis


def describe_figure(figure: Figure, place: str = "step") -> str:
    """A text alternative: where every line starts and ends."""
    parts = []
    for line in figure["data"][:MAX_LEGEND]:
        points = [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y is not None]
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            name = html.unescape(line["name"])  # names are escaped for plotly
            parts.append(f"{name}: from {y0:.4g} at {place} {x0} to {y1:.4g} at {place} {x1}")
    left_out = len(figure["data"]) - MAX_LEGEND
    return "; ".join(parts) + (f"; and {left_out} more lines" if left_out > 0 else "")
