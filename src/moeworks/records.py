"""Values as JSON: what every `--json`, report and data file of moeworks is written with."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def as_record(value: Any, digits: int | None = None) -> Any:
    """`value` in terms of dicts, lists, numbers, texts and None.

    Dataclasses are objects, with their `total` where that is a property of theirs; arrays are nested lists.
    JSON has no word for NaN and the infinities: they are None.

    Args:
        digits: significant digits of numbers that are not integers; None keeps all.

    >>> as_record({"a": [1.0, math.nan], 3: (True, 0.123456789)}, digits=6)
    {'a': [1.0, None], '3': [True, 0.123457]}
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        if isinstance(getattr(type(value), "total", None), property):
            names.append("total")
        return {name: as_record(getattr(value, name), digits) for name in names}
    if isinstance(value, Mapping):
        return {str(key): as_record(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_record(item, digits) for item in value]
    # Arrays, tensors and their scalars, without importing what they come from.
    return as_record(value.tolist(), digits) if hasattr(value, "tolist") else value


def json_text(value: Any, *, indent: int | None = 2, ascii_only: bool = False) -> str:
    """`value` as strict JSON: as_record decides what becomes of NaN."""
    return json.dumps(as_record(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
