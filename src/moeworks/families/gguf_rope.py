"""Rotary positions as GGUF files describe them: keys, and tables of divisors of the frequencies."""

import math
from collections.abc import Sequence

from moeworks.errors import ConfigError
from moeworks.families.base import Json, take

_YARN = {
    "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor",
    "yarn_attn_factor": "attention_factor",
}  # fmt: skip
_CONTEXTS = (8192, *(2**power for power in range(4, 21) if power != 13))
_BANDS = ((1.0, 4.0), (1.0, 1.0))
_CLOSE = 1e-4


def decimal(value: float) -> float:
    """The short number that was rounded to float32, as in 1e-5 for 9.999999747378752e-06."""
    return float(f"{value:.6g}")


def take_rope_scaling(given: Json) -> Json | None:
    """`rope_scaling` from keys "rope.scaling.*"; None where positions are not stretched."""
    kind = given.pop("rope.scaling.type", None)
    given.pop("rope.scaling.finetuned", None)
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"rope.scaling.type = {kind!r}: known: 'linear', 'none', 'yarn'")
    scaling: Json = {"rope_type": kind, "factor": decimal(take(given, "rope.scaling.factor"))}
    if kind == "linear":
        return scaling
    scaling["original_max_position_embeddings"] = take(given, "rope.scaling.original_context_length")
    if (share := given.pop("rope.scaling.yarn_ext_factor", 1.0)) not in (1.0, -1.0):
        raise ConfigError(f"rope.scaling.yarn_ext_factor = {share!r}: only 1 is known")
    for theirs, ours in _YARN.items():
        value = given.pop(f"rope.scaling.{theirs}", None)
        # An attention factor of 1 multiplies the usual one.
        if value is not None and (ours != "attention_factor" or value != 1.0):
            scaling[ours] = decimal(value)
    return scaling


def scaling_of_divisors(divisors: Sequence[float], theta: float, context: int) -> Json | None:
    """`rope_scaling` of a table with a divisor per frequency: Llama 3's where it is one, else the table."""
    if all(abs(divisor - 1) <= _CLOSE for divisor in divisors):
        return None
    count, factor = len(divisors), decimal(max(divisors))
    for original in _CONTEXTS:
        turns = [original * theta ** (-i / count) / (2 * math.pi) for i in range(count)]
        for low, high in _BANDS:
            expected = [_divisor(turn, factor, low, high) for turn in turns]
            if all(abs(a - b) <= _CLOSE * b for a, b in zip(divisors, expected, strict=True)):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    table = list(map(decimal, divisors))
    return longrope(table, table, context, 1.0)


def longrope(short: Sequence[float], long: Sequence[float], original: int, factor: float) -> Json:
    """Tables for texts up to `original` and beyond; `factor` multiplies cosines and sines."""
    return {
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "short_mscale": factor,
        "long_mscale": factor,
        "original_max_position_embeddings": original,
    }


def _divisor(turns: float, factor: float, low: float, high: float) -> float:
    """Llama 3's rule: slow frequencies are divided by `factor`, fast ones by 1, a ramp between."""
    if turns > high:
        return 1.0
    if turns < low or low == high:
        return factor
    kept = (turns - low) / (high - low)
    return 1 / ((1 - kept) / factor + kept)
