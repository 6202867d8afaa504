"""Static pictures."""

import io

import numpy as np
import pytest

from moeworks.report.picture import draw_heat, draw_layers, draw_lines, png

image = pytest.importorskip("matplotlib.image")


def pixels(drawings) -> np.ndarray:
    return image.imread(io.BytesIO(png("$\\frac{a$ title", drawings)), format="png")


def heat(axes) -> None:
    draw_heat(axes, np.arange(12.0).reshape(3, 4) / 4, ["layer 0", "$_layer", "layer 2"], "Load", "times")


def test_rows_of_two_below_a_wide_one():
    def lines(axes) -> None:
        draw_lines(axes, [0, 1], {"$x_": np.ones(2), "chance": np.zeros(2)}, "Lines", ("layer", "share"))
        assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "--"]

    one, three, four = (pixels([heat] + [lines] * n) for n in (0, 2, 3))
    assert one.shape[1] == three.shape[1] == four.shape[1]
    assert three.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    assert four.shape[0] == pytest.approx(3 * one.shape[0], abs=2)
    assert one.std() > 0.05  # something is drawn


def test_many_layers_are_named_at_the_ends():
    seen = []

    def layers(axes) -> None:
        draw_layers(axes, range(3), np.ones((9, 3)), [f"layer {i}" for i in range(9)], "By layer", ("x", "y"))
        seen.extend(axes.get_legend_handles_labels()[1])

    pixels([layers])
    assert seen == ["layer 0", "layer 8"]


def test_the_same_input_gives_the_same_file():
    assert png("a", [heat]) == png("a", [heat])
