"""Reading JSON whose shape must be checked: every refusal names the file, the line and the field."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeworks.errors import DataError


@dataclass(frozen=True)
class Fields:
    """A JSON object and where it stands ("runs/a/metrics.jsonl line 7")."""

    where: str
    values: Mapping[str, Any]

    def _get(self, name: str, kinds: tuple[type, ...], rule: str) -> Any:
        if name not in self.values:
            raise DataError(f"{self.where}: the field {name!r} is missing")
        value = self.values[name]
        # bool is an int to isinstance, and never a number here.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(f"{self.where}: {name} = {value!r}: must be {rule}")
        return value

    def number(self, name: str) -> float:
        """A number; NaN and infinities pass, for a run may end in them."""
        value = self._get(name, (int, float), "a number")
        try:
            return float(value)
        except OverflowError as error:
            raise DataError(f"{self.where}: {name}: has too many digits for a number") from error

    def count(self, name: str) -> int:
        """A whole number that is not negative."""
        value = self._get(name, (int,), "a whole number")
        if value < 0:
            raise DataError(f"{self.where}: {name} = {value!r}: must not be negative")
        if value >= 1 << 63:
            raise DataError(f"{self.where}: {name}: has too many digits for a count")
        return value

    def text(self, name: str) -> str:
        return self._get(name, (str,), "text")

    def object(self, name: str) -> "Fields":
        return Fields(f"{self.where}, {name}", self._get(name, (dict,), "an object"))

    def objects(self, name: str) -> dict[str, "Fields"]:
        """An object whose values are objects."""
        outer = self.object(name)
        return {key: outer.object(key) for key in outer.values}

    def numbers(self, name: str, length: int | None) -> tuple[float, ...]:
        """A list of `length` numbers; None takes any length."""
        value = self._get(name, (list,), "a list")
        if length is not None and len(value) != length:
            raise DataError(
                f"{self.where}: {name} has {len(value)} values: must have {length}, one per MoE layer"
            )
        inner = Fields(f"{self.where}, {name}", {str(i): entry for i, entry in enumerate(value)})
        return tuple(inner.number(key) for key in inner.values)

    def indices(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers that are not negative, of any length."""
        value = self._get(name, (list,), "a list")
        inner = Fields(f"{self.where}, {name}", {str(i): entry for i, entry in enumerate(value)})
        return tuple(inner.count(key) for key in inner.values)

    def counts(self, name: str, rows: int) -> np.ndarray:
        """A matrix of counts, int64 [rows, columns]; `rows` lists of equal length."""
        value = self._get(name, (list,), "a list of lists")
        try:
            matrix = np.array(value)
        except (ValueError, OverflowError):  # lists of different lengths, or numbers of any
            matrix = np.zeros(0)
        if matrix.ndim != 2 or len(matrix) != rows or matrix.dtype.kind != "i" or matrix.min(initial=0) < 0:
            raise DataError(
                f"{self.where}: {name} must be {rows} equally long lists of counts, one per MoE layer"
            )
        return matrix.astype(np.int64)


def parse_object(text: bytes, where: str) -> Fields:
    """The JSON object in `text`; DataError names `where`, and the line for text of several lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where} line {error.lineno}" if text.count(b"\n") > 1 else where
        raise DataError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if b"\\ud" in text.lower():
        # Half of a surrogate pair, which a model may well write, is no text that a page can hold.
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, not {type(value).__name__}")
    return Fields(where, value)


def read_object(path: Path) -> Fields:
    """The JSON object in the file `path`; DataError if the file is missing or holds something else."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_object(text, str(path))
