"""Arrays for a page's script, in base64: two bytes a value and a third, where JSON takes five to eight."""

import base64

import numpy as np

_MISSING = 0xFFFF


def pack_numbers(values: np.ndarray) -> dict[str, object]:
    """float [...] as 16 bits between the smallest and the largest, an error of 1/130,000 of that range.

    NaN is kept; infinities become the largest or smallest finite value.
    """
    exact = np.asarray(values, dtype=np.float64)
    finite = exact[np.isfinite(exact)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = (high - low) or 1.0
    place = np.rint((np.clip(np.nan_to_num(exact, nan=low), low, high) - low) / span * (_MISSING - 1))
    codes = np.where(np.isnan(exact), _MISSING, place).astype("<u2")
    return {"shape": list(exact.shape), "low": low, "span": span, "codes": _base64(codes)}


def pack_counts(values: np.ndarray) -> dict[str, object]:
    """Whole numbers [...] from -1 up to 2^32 - 2, in as many bytes as the largest takes."""
    exact = np.asarray(values, dtype=np.int64)
    largest = int(exact.max(initial=0)) + 1  # everything is stored one higher
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    return {"shape": list(exact.shape), "width": width, "codes": _base64((exact + 1).astype(f"<u{width}"))}


def _base64(codes: np.ndarray) -> str:
    return base64.b64encode(codes.tobytes()).decode("ascii")
