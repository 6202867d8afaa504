"""Tables as JSON."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

DIGITS = 6
"""Significant digits of numbers."""


def as_json(value: Any) -> Any:
    """`value` for json.dumps(allow_nan=False): dataclasses are objects, arrays nested lists, NaN null.

    Infinities are null too: JSON has no word for them.

    >>> as_json({"a": np.array([[1.0, np.nan]]), 3: (True, np.int64(2))})
    {'a': [[1.0, None]], '3': [True, 2]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return _rounded(value.tolist())
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return _finite_or_none(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _rounded(value: Any) -> Any:
    return [_rounded(part) for part in value] if isinstance(value, list) else _finite_or_none(value)


def _finite_or_none(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
