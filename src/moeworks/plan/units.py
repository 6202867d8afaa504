"""Amounts as people type them: `80GB`, `141GiB`, `15T`, `20B-params`."""

import re

from moeworks.errors import ConfigError

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_BYTES = _NUMBER + r"([KMGTP]|[KMGT]I)B"
LARGEST = 1e21
"""More bytes or tokens than anything here is about."""


def parse_count(text: str, field: str) -> int:
    """A number of things: digits, with `_` or `,` between them if need be, and K, M, B (or G), T or P.

    Raises ConfigError naming `field`.

    >>> parse_count("14.8T", "tokens")
    14800000000000
    """
    match = re.fullmatch(_NUMBER + r"([KMGBTP]?)", _clean(text))
    if match is None:
        raise ConfigError(f"{field} = {text!r}: must be a number, as in 300B, 15T or 2_000_000")
    return _checked(float(match[1]) * _DECIMAL[match[2]], text, field)


def parse_bytes(text: str, field: str) -> int:
    """A number of bytes: `80GB` (10^9) or `80GiB` (2^30), K to T. Raises ConfigError naming `field`.

    >>> parse_bytes("1.5GiB", "memory")
    1610612736
    """
    match = re.fullmatch(_BYTES, _clean(text))
    if match is None:
        raise ConfigError(f"{field} = {text!r}: must be bytes with a unit, as in 80GB or 80GiB")
    return _checked(float(match[1]) * (_DECIMAL | _BINARY)[match[2]], text, field)


def parse_memory(text: str, field: str = "gpu_memory") -> tuple[int | None, int | None]:
    """A device's memory as (bytes, None), or as (None, parameters) for `20B-params`. Raises ConfigError.

    >>> parse_memory("20B-params")
    (None, 20000000000)
    """
    head, dash, tail = text.strip().rpartition("-")
    if dash and tail.lower() in ("params", "parameters"):
        return None, parse_count(head, field)
    if re.fullmatch(_BYTES, _clean(text)) is None:
        raise ConfigError(
            f"{field} = {text!r}: must be bytes, as in 80GB or 80GiB, or parameters, as in 20B-params"
        )
    return parse_bytes(text, field), None


def _clean(text: str) -> str:
    return text.strip().upper().replace("_", "").replace(",", "")


def _checked(value: float, text: str, field: str) -> int:
    if not 1 <= value <= LARGEST:
        raise ConfigError(f"{field} = {text!r}: must lie between 1 and {LARGEST:g}")
    return round(value)
