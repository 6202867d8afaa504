"""Colours of both themes."""

import itertools

import pytest

from moeworks.report.theme import SATURATION, depth_colors, template


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


BACKGROUND = {"light": "#ffffff", "dark": "#1d2025"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out(theme: str) -> None:
    layout = template(theme)["layout"]
    assert contrast(layout["font"]["color"], BACKGROUND[theme]) >= 7
    assert all(contrast(color, BACKGROUND[theme]) >= 3 for color in layout["colorway"])


@pytest.mark.parametrize("count", [1, 2, 4, 61])
def test_layer_colours_can_be_seen_in_both_themes(count: int) -> None:
    colors = depth_colors(count)
    assert len(set(colors)) == count
    for color, background in itertools.product(colors, BACKGROUND.values()):
        assert contrast(color, background) >= 2.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_neutral_heat_colour_is_the_fair_share_and_both_ends_differ_from_it(theme: str) -> None:
    scale = dict(template(theme)["data"]["heatmap"][0]["colorscale"])
    neutral = scale[1 / SATURATION]
    assert contrast(scale[0.0], neutral) >= 4.5
    assert contrast(scale[1.0], neutral) >= 4.5
    red, _, blue = (int(neutral[i : i + 2], 16) for i in (1, 3, 5))
    assert abs(red - blue) < 16
