"""From numbers to places on an axis, with round ticks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from `start` to `stop` pixels."""

    start: float
    stop: float
    low: float
    high: float
    ticks: tuple[float, ...]
    transform: Callable[[float], float]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.transform(self.low), self.transform(self.high)
        return self.start + (self.transform(value) - low) / (high - low) * (self.stop - self.start)


def linear(values: Sequence[float], start: float, stop: float, *, pad: float = 0.04) -> Scale:
    """An axis that holds all values, with a margin of `pad` of their range."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(largest, 1e-3):
        half = 0.5 * largest if largest > 1e-6 else 1.0
        low, high = low - half, high + half
    low, high = low - pad * (high - low), high + pad * (high - low)
    step = _round_step((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1))
    return Scale(start, stop, low, high, ticks, lambda value: value)


def logarithmic(values: Sequence[float], start: float, stop: float) -> Scale:
    """An axis of positive values, with ticks at 1, 2 and 5 times powers of ten."""
    low, high = min(values), max(values)
    if high <= low * (1 + 1e-9):
        low, high = low / 2, high * 2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = tuple(m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high)
    return Scale(start, stop, low, high, ticks or (low, high), math.log10)


def number(value: float) -> str:
    """Short, in at most three significant digits: 0.0213, 1.5, 2e12.

    >>> number(-0.02134), number(1500.0), number(2e12)
    ('-0.0213', '1,500', '2e12')
    """
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step)
