"""Heat maps as plotly figures with `frames`: the page shows one frame at a time, by a slider or a list."""

from collections.abc import Sequence

import numpy as np

from moeworks.report.theme import Figure


def rows(matrix: np.ndarray, digits: int) -> list[list[float | None]]:
    return [[None if np.isnan(x) else round(float(x), digits) for x in row] for row in matrix]


def heat_map(
    x: list[str], y: list[str], frames: list[Figure], shown: Figure, height: int, **trace: object
) -> Figure:
    """A heat map that starts with the frame `shown`."""
    base = {"x": x, "y": y, "xgap": int(len(x) <= 64), "ygap": 1} | trace | shown["data"][0]
    axis = {"type": "category", "automargin": True, "fixedrange": True, "showgrid": False, "ticks": ""}
    layout = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": axis | {"title": {"text": "expert"}, "tickangle": 0, "tick0": 0, "dtick": 1},
        "yaxis": axis | {"autorange": "reversed"},
    }
    return {"data": [base], "layout": layout, "frames": frames}


def colorbar(title: str, values: Sequence[float], texts: Sequence[str]) -> Figure:
    """A horizontal bar above the map: it leaves the width to the experts, on a phone too."""
    return {
        "orientation": "h",
        "y": 1,
        "yanchor": "bottom",
        "ypad": 2,
        "thickness": 12,
        "len": 0.9,
        "title": {"text": title, "side": "top"},
        "tickvals": list(values),
        "ticktext": list(texts),
        "tickangle": 0,
        "outlinewidth": 0,
    }


def row_height(rows: int) -> int:
    """Height of a row in pixels: large for few rows, at least as high as its label for many."""
    return max(16, min(40, 320 // rows))
