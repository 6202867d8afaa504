"""Colours of the figures, as two plotly templates: the page switches between them, the figures name none."""

from typing import Any, Final

Figure = dict[str, Any]

SATURATION: Final = 3.0
"""Heat maps run from 0 to this many times the balanced share."""

# Blue, neutral, orange: told apart with every common kind of colour blindness. The neutral middle stands at
# 1/3 of the scale, the balanced share, so that half of the share is about as strong a colour as twice of it.
HEAT: Final = {
    "light": ((0.0, "#1f4fa3"), (0.17, "#88aee0"), (1 / 3, "#f6f4ef"), (0.6, "#ee9a4d"), (1.0, "#a93c00")),
    "dark": ((0.0, "#6ea8ff"), (0.17, "#3a5f96"), (1 / 3, "#2a2d33"), (0.6, "#b8651b"), (1.0, "#ffb066")),
}
# One hue from faint to strong, for what has no neutral middle.
SEQUENTIAL: Final = {
    "light": ((0.0, "#f3f4f6"), (0.25, "#c5d4ec"), (0.5, "#7ea3d8"), (0.75, "#3a6bb5"), (1.0, "#0e2f66")),
    "dark": ((0.0, "#23262b"), (0.25, "#27406a"), (0.5, "#3b6cb0"), (0.75, "#74a5e8"), (1.0, "#d3e4ff")),
}
INK: Final = {"light": "#1c1e21", "dark": "#e8e9ec"}
_MUTED: Final = "#8b929b"
_GRID: Final = {"light": "#e4e5e8", "dark": "#343942"}
_CARD: Final = {"light": "#ffffff", "dark": "#1d2025"}
LINES: Final = {
    "light": ("#2f5fd0", "#c2570c", "#12806a", "#a8327f", "#6b5bd2", "#7a6a00"),
    "dark": ("#7aa5ff", "#ff9d5c", "#4fd0b3", "#f083c5", "#b3a6ff", "#d9c64a"),
}
# From the first layer to the last; each is readable on white and on near-black.
_DEPTH: Final = ((58, 111, 216), (16, 150, 140), (201, 132, 18), (207, 66, 140))


def template(theme: str) -> Figure:
    """The plotly template of the "light" or "dark" theme."""
    axis = {"gridcolor": _GRID[theme], "linecolor": _GRID[theme], "zerolinecolor": _GRID[theme]}
    hover = {"bgcolor": _CARD[theme], "bordercolor": INK[theme], "font": {"color": INK[theme], "size": 13}}
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK[theme], "family": "system-ui, sans-serif", "size": 12},
            "colorway": list(LINES[theme]),
            "hoverlabel": hover | {"align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _MUTED, "activecolor": INK[theme]},
            "xaxis": axis,
            "yaxis": axis,
        },
        "data": {"heatmap": [{"colorscale": [list(stop) for stop in HEAT[theme]]}]},
    }


def depth_colors(count: int) -> list[str]:
    """Colours for `count` layers, from the first to the last."""
    colors = []
    for index in range(count):
        place = index / max(count - 1, 1) * (len(_DEPTH) - 1)
        left = min(int(place), len(_DEPTH) - 2)
        mix = [a + (b - a) * (place - left) for a, b in zip(_DEPTH[left], _DEPTH[left + 1], strict=True)]
        colors.append("#" + "".join(f"{round(part):02x}" for part in mix))
    return colors
