"""Pictures of labs: well-formed, complete, and with what was given in the right places."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_records import results

from moeworks.labs.experiments import LABS
from moeworks.labs.figures import Bar, Film, IntervalFigure, LineFigure, Series
from moeworks.labs.summary import summarise
from moeworks.report.lab_scale import linear, logarithmic, number
from moeworks.report.lab_svg import draw, heat_color

NAMES = {"svg": "{http://www.w3.org/2000/svg}"}


def parsed(figure) -> ElementTree.Element:
    return ElementTree.fromstring(draw(figure))


def found(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return list(root.iter(NAMES["svg"] + name))


@pytest.mark.parametrize("name", LABS)
def test_all_figures_of_all_labs(name: str) -> None:
    summary = summarise(LABS[name], results(LABS[name]), {}, quick=False)
    assert summary.figures
    assert len({figure.key for figure in summary.figures}) == len(summary.figures)
    for figure in summary.figures:
        root = parsed(figure)
        assert root.attrib["aria-label"] == figure.title
        assert not re.search(r"nan|inf(?!o)", draw(figure).split("</style>")[1])


def test_intervals() -> None:
    bars = (Bar(name="<a>", value=1.0, low=0.5, high=2.0), Bar(name="b", value=-1.0, low=-1.5, high=0.0))
    root = parsed(IntervalFigure(key="k", title="T & U", caption="", x_title="x", bars=bars, reference=0.0))
    dots = [float(c.attrib["cx"]) for c in found(root, "circle")]
    lines = [line for line in found(root, "line") if line.attrib["class"] == "bar"]
    (reference,) = (line for line in found(root, "line") if line.attrib["class"] == "ref")
    assert dots[1] < float(reference.attrib["x1"]) < dots[0]
    for dot, line in zip(dots, lines, strict=True):
        assert float(line.attrib["x1"]) < dot < float(line.attrib["x2"])
    assert "<a>" in [text.text for text in found(root, "text")]


def test_lines_leave_gaps_out() -> None:
    line = Series(name="a", x=(1.0, 10.0, 100.0), y=(3.0, None, 1.0))
    figure = LineFigure(key="k", title="t", caption="", x_title="x", y_title="y", series=(line,), log_x=True)
    (drawn,) = found(parsed(figure), "polyline")
    points = [tuple(map(float, point.split(","))) for point in drawn.attrib["points"].split()]
    assert len(points) == 2
    assert points[0][0] < points[1][0] and points[0][1] < points[1][1]  # down is greater in pictures


def test_lines_without_points() -> None:
    nothing = Series(name="a", x=(1.0,), y=(None,))
    figure = LineFigure(key="k", title="t", caption="", x_title="x", y_title="y", series=(nothing,))
    assert len(found(parsed(figure), "polyline")) == 1


def test_film_shows_first_middle_and_last() -> None:
    frames = tuple(f"step {n}" for n in range(9))
    load = tuple(tuple((0.0, 2.0) for _ in range(3)) for _ in frames)
    root = parsed(Film(key="k", title="t", caption="", frames=frames, names=("a", "b"), load=(load, load)))
    assert len(found(root, "rect")) == 2 * 3 * 3 * 2
    texts = [text.text for text in found(root, "text")]
    assert [text for text in texts if text and text.startswith("step")] == ["step 0", "step 3", "step 8"]


def test_heat_colors() -> None:
    assert heat_color(0.0) != heat_color(1.0) != heat_color(3.0)
    assert heat_color(3.0) == heat_color(99.0)
    assert all(re.fullmatch("#[0-9a-f]{6}", heat_color(load / 10)) for load in range(40))


FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=6))
def test_linear_scale_holds_everything(values: list[float]) -> None:
    scale = linear(values, 100.0, 500.0)
    assert all(99.9 <= scale(value) <= 500.1 for value in values)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert 2 <= len(scale.ticks) <= 12


@given(st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=6))
def test_logarithmic_scale_holds_everything(values: list[float]) -> None:
    scale = logarithmic(values, 0.0, 300.0)
    assert all(-0.1 <= scale(value) <= 300.1 for value in values)
    assert scale.ticks


@given(st.floats(-1e15, 1e15, allow_nan=False))
def test_numbers_are_short_and_close(value: float) -> None:
    text = number(value).replace(",", "")
    assert len(text) <= 9
    assert math.isclose(float(text), value, rel_tol=0.01, abs_tol=1e-12)
