"""Figures of labs as SVG: small, readable as text, without a browser or a plotting library.

Each picture brings its own style, for a light and a dark page.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

from moeworks.labs.figures import Figure, Film, IntervalFigure, LineFigure
from moeworks.report.fragments import escape
from moeworks.report.lab_scale import Scale, linear, logarithmic, number
from moeworks.report.theme import SATURATION, template

WIDTH = 760
_ROW, _LABEL, _AXIS = 26, 190, 46
_PLOT_HEIGHT, _LEFT, _LEGEND = 260, 62, 190
_DASHES = ("", "6 3", "2 3")
_COLORS = 6
MAX_CELLS = 48
"""Experts of a film that are drawn; the others are left out."""


def draw(figure: Figure) -> str:
    """The picture of any figure, an <svg> element."""
    if isinstance(figure, IntervalFigure):
        return draw_intervals(figure)
    return draw_lines(figure) if isinstance(figure, LineFigure) else draw_film(figure)


def draw_intervals(figure: IntervalFigure) -> str:
    """A row for each number: a dot in its interval."""
    ends = [end for bar in figure.bars for end in (bar.low, bar.high)]
    scale = linear([*ends, *([] if figure.reference is None else [figure.reference])], _LABEL, WIDTH - 80)
    height = _ROW * len(figure.bars)
    parts = [_x_axis(scale, figure.x_title, height)]
    if figure.reference is not None:
        x = scale(figure.reference)
        parts.append(f'<line class="ref" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    for row, bar in enumerate(figure.bars):
        y = _ROW * (row + 0.5)
        low, value, high = (scale(v) for v in (bar.low, bar.value, bar.high))
        said = f"{number(bar.value)} [{number(bar.low)}, {number(bar.high)}]"
        parts.append(
            f'<text class="label" x="{_LABEL - 12}" y="{y + 4}" text-anchor="end">{escape(bar.name)}</text>'
            f'<g class="c0"><title>{escape(f"{bar.name}: {said}")}</title>'
            f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{value:.1f}" cy="{y}" r="4.5"/></g>'
            f'<text class="value" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{number(bar.value)}</text>'
        )
    return _svg(figure.title, height + _AXIS, parts)


def draw_lines(figure: LineFigure) -> str:
    """Lines with a legend on the right."""
    points = [(x, y) for line in figure.series for x, y in zip(line.x, line.y, strict=True) if y is not None]
    right = WIDTH - _LEGEND
    xs = [x for x, _ in points] or [0.0, 1.0]
    use_log = figure.log_x and min(xs) > 0
    x_scale = logarithmic(xs, _LEFT, right) if use_log else linear(xs, _LEFT, right, pad=0)
    y_scale = linear([y for _, y in points] or [0.0, 1.0], _PLOT_HEIGHT - 6, 8)
    parts = [_x_axis(x_scale, figure.x_title, _PLOT_HEIGHT), _y_axis(y_scale, figure.y_title, right)]
    for place, line in enumerate(figure.series):
        dash = _DASHES[place // _COLORS % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        drawn = " ".join(
            f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in zip(line.x, line.y, strict=True) if y is not None
        )
        y = 16 + 19 * place
        parts.append(
            f'<g class="c{place % _COLORS}"><title>{escape(line.name)}</title>'
            f'<polyline points="{drawn}"{style}/>'
            f'<line class="line" x1="{right + 14}" x2="{right + 36}" y1="{y}" y2="{y}"{style}/></g>'
            f'<text class="label" x="{right + 42}" y="{y + 4}">{escape(line.name)}</text>'
        )
    return _svg(figure.title, max(_PLOT_HEIGHT + _AXIS, 19 * len(figure.series) + 20), parts)


def draw_film(figure: Film) -> str:
    """The first, a middle and the last frame of each arm, side by side."""
    count = len(figure.frames)
    shown = sorted({0, count // 3, count - 1})
    gap, top = 14, 22
    width = (WIDTH - _LABEL - gap * (len(shown) - 1)) / len(shown)
    layers = max(len(frames[0]) for frames in figure.load)
    cell = 15
    parts = [
        f'<text class="tick" x="{_LABEL + place * (width + gap):.1f}" y="12">{escape(figure.frames[index])}'
        "</text>"
        for place, index in enumerate(shown)
    ]
    for row, (name, frames) in enumerate(zip(figure.names, figure.load, strict=True)):
        y = top + row * (layers * cell + 16)
        middle = y + layers * cell / 2 + 4
        parts.append(
            f'<text class="label" x="{_LABEL - 12}" y="{middle}" text-anchor="end">{escape(name)}</text>'
        )
        for place, index in enumerate(shown):
            parts.append(_heat(frames[index], _LABEL + place * (width + gap), y, width, cell))
    return _svg(figure.title, top + len(figure.names) * (layers * cell + 16), parts)


def heat_color(load: float) -> str:
    """The colour of a load, 1 being the balanced share, as in the reports of runs."""
    stops = template("light")["data"]["heatmap"][0]["colorscale"]
    place = min(max(load / SATURATION, 0.0), 1.0)
    for (left, one), (right, two) in itertools.pairwise(stops):
        if place <= right:
            mix = (place - left) / (right - left)
            parts = zip(_rgb(one), _rgb(two), strict=True)
            return "#" + "".join(f"{round(a + (b - a) * mix):02x}" for a, b in parts)
    return stops[-1][1]


def _rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def _heat(load: Sequence[Sequence[float]], x: float, y: float, width: float, cell: float) -> str:
    step = width / min(len(load[0]), MAX_CELLS)
    return "".join(
        f'<rect x="{x + e * step:.1f}" y="{y + layer * cell:.1f}" width="{step - 0.6:.1f}"'
        f' height="{cell - 1}" fill="{heat_color(value)}"/>'
        for layer, row in enumerate(load)
        for e, value in enumerate(row[:MAX_CELLS])
    )


def _x_axis(scale: Scale, title: str, height: float) -> str:
    ticks = "".join(
        f'<line class="grid" x1="{scale(t):.1f}" x2="{scale(t):.1f}" y1="0" y2="{height}"/>'
        f'<text class="tick" x="{scale(t):.1f}" y="{height + 16}" text-anchor="middle">{number(t)}</text>'
        for t in scale.ticks
    )
    middle = (scale.start + scale.stop) / 2
    name = f'<text class="tick" x="{middle}" y="{height + 36}" text-anchor="middle">{escape(title)}</text>'
    return ticks + name


def _y_axis(scale: Scale, title: str, right: float) -> str:
    ticks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{scale(t):.1f}" y2="{scale(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{scale(t) + 4:.1f}" text-anchor="end">{number(t)}</text>'
        for t in scale.ticks
    )
    middle = (scale.start + scale.stop) / 2
    turned = f'transform="rotate(-90 12 {middle})"'
    return (
        f'{ticks}<text class="tick" x="12" y="{middle}" text-anchor="middle" {turned}>{escape(title)}</text>'
    )


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {math.ceil(height)}" width="{WIDTH}" height="{math.ceil(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}" class="lab">'
        f"<style>{_style()}</style>{''.join(parts)}</svg>"
    )


def _style() -> str:
    light = _theme_style("light")
    return f"{_SHAPES}{light}@media (prefers-color-scheme: dark){{{_theme_style('dark')}}}"


_SHAPES = (
    "svg.lab{font:12px system-ui,sans-serif;max-width:100%;height:auto}"
    ".lab polyline{fill:none;stroke-width:2}.lab .bar,.lab .line{stroke-width:2.5}"
    ".lab .tick{font-size:11px}.lab .value{font-variant-numeric:tabular-nums}"
    ".lab .ref{stroke-dasharray:3 3;stroke-width:1.5}"
)


def _theme_style(theme: str) -> str:
    layout = template(theme)["layout"]
    ink, grid = layout["font"]["color"], layout["xaxis"]["gridcolor"]
    colors = "".join(
        f".lab .c{i}{{fill:{color};stroke:{color}}}" for i, color in enumerate(layout["colorway"])
    )
    muted = layout["modebar"]["color"]
    return (
        f".lab text{{fill:{ink};stroke:none}}.lab .tick{{fill:{muted}}}.lab .grid{{stroke:{grid}}}"
        f".lab .ref{{stroke:{muted}}}{colors}"
    )
