"""Static pictures, drawn by matplotlib (the extra `png`) without a display or a browser."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moeworks.errors import require
from moeworks.report.theme import HEAT, INK, LINES, SATURATION, depth_colors

Drawing = Callable[[Any], None]
"""Draws on matplotlib axes, which have no types of ours."""
DPI = 110


def png(title: str, drawings: Sequence[Drawing], *, columns: int = 2) -> bytes:
    """A PNG with a title and the drawings in a grid, the first one across the whole width.

    Raises MissingDependencyError without matplotlib.
    """
    figures = require("matplotlib.figure", extra="png")
    rows = 1 + -(-(len(drawings) - 1) // columns)
    figure = figures.Figure(figsize=(12.5, 3.9 * rows), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=15, fontweight="bold", color=INK["light"], parse_math=False)
    grid = figure.add_gridspec(rows, columns)
    places = [grid[0, :]] + [grid[1 + i // columns, i % columns] for i in range(len(drawings) - 1)]
    for place, draw in zip(places, drawings, strict=True):
        axes = figure.add_subplot(place)
        axes.set_prop_cycle(color=LINES["light"])
        draw(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "moeworks"})
    return content.getvalue()


def draw_heat(axes: Any, values: np.ndarray, names: Sequence[str], title: str, label: str) -> None:
    """Rows of experts around a fair share of 1."""
    colors = require("matplotlib.colors", extra="png")
    scale = colors.LinearSegmentedColormap.from_list("fair", [tuple(stop) for stop in HEAT["light"]])
    image = axes.imshow(values, aspect="auto", cmap=scale, vmin=0, vmax=SATURATION, interpolation="nearest")
    step = max(1, -(-len(names) // 26))
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=8, parse_math=False)
    axes.set_xlabel("expert")
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    bar = axes.figure.colorbar(image, ax=axes, extend="max", pad=0.01, fraction=0.03)
    bar.set_label(label)


def draw_lines(
    axes: Any, x: Sequence[Any], lines: dict[str, np.ndarray], title: str, labels: tuple[str, str]
) -> None:
    """Lines with a legend; `labels` are those of the axes. A name that starts with "chance" is dashed."""
    for name, values in lines.items():
        dashed = name.startswith("chance")
        style = {"color": "#8b929b", "linestyle": "--"} if dashed else {"marker": "o", "markersize": 3}
        axes.plot(x, values, label=name, **style)
    finish(axes, title, labels)


def draw_layers(
    axes: Any, x: Sequence[Any], rows: np.ndarray, names: Sequence[str], title: str, labels: tuple[str, str]
) -> None:
    """A line for each layer, from the first (blue) to the last (pink); the ends are named."""
    for place, (row, color) in enumerate(zip(rows, depth_colors(len(rows)), strict=True)):
        named = len(rows) <= 6 or place in (0, len(rows) - 1)
        axes.plot(x, row, color=color, linewidth=1.2, label=names[place] if named else None)
    finish(axes, title, labels)


def finish(axes: Any, title: str, labels: tuple[str, str]) -> None:
    """Title, labels, grid and legend."""
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.locator_params(axis="x", integer=True)
    axes.grid(color="#e4e5e8")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
