"""Numbers in words: what the page and the hover texts say."""

import math
from collections.abc import Sequence


def short_number(value: float) -> str:
    """Three significant digits and a unit: 1130000 -> "1.13 M"."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:#.3g}".rstrip(".") + unit
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """300.1 -> "5 min 0 s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def percent(share: float) -> str:
    """0.03125 -> "3.1 %"; a share that is not 0 never reads as 0."""
    value = 100 * share
    return "under 0.1 %" if 0 < value < 0.1 else f"{value:.1f} %"


def plural(count: int, noun: str) -> str:
    """(1, "layer") -> "1 layer"; (2, "layer") -> "2 layers"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def span(first: int, last: int) -> str:
    """(91, 100) -> "steps 91 to 100"."""
    return f"step {last}" if first == last else f"steps {first} to {last}"


def finite(value: float, digits: int) -> float | None:
    """`value` to `digits` significant digits; None, JSON's null, for what JSON cannot hold."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def shortened(parts: Sequence[str], limit: int = 4, noun: str = "layer") -> str:
    """The first parts in a row, and how many there are beside them; the first letter is a capital."""
    rest = len(parts) - limit
    text = "; ".join(parts[:limit]) + (f"; and {plural(rest, f'more {noun}')}" if rest > 0 else "")
    return text[0].upper() + text[1:]
