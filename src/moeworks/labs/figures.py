"""Pictures as data: what a lab shows, for report/ to draw. Whole figures go into results.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number with its interval, on a line of its own."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class IntervalFigure:
    """Numbers with intervals, one below the other."""

    kind: Literal["intervals"] = "intervals"
    key: str
    """Name of its file and its place in the page."""
    title: str
    caption: str
    x_title: str
    bars: tuple[Bar, ...]
    reference: float | None = None
    """Where a line marks what is compared with, or what is even."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: points without a value are left out."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class LineFigure:
    """Lines in one frame."""

    kind: Literal["lines"] = "lines"
    key: str
    title: str
    caption: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Film:
    """Heat maps of several arms, frame by frame: load of each layer and expert, 1 is the balanced share."""

    kind: Literal["film"] = "film"
    key: str
    title: str
    caption: str
    frames: tuple[str, ...]
    """What each frame shows, e.g. "step 20"."""
    names: tuple[str, ...]
    """Of the arms."""
    load: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]
    """[arm][frame][layer][expert]."""


Figure = IntervalFigure | LineFigure | Film


def series(name: str, x: Sequence[float], y: np.ndarray) -> Series:
    """A line of at most five digits a point; what is not finite becomes a gap."""
    return Series(
        name=name,
        x=tuple(float(f"{value:.5g}") for value in x),
        y=tuple(float(f"{value:.5g}") if np.isfinite(value) else None for value in y.tolist()),
    )
