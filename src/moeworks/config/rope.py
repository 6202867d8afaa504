"""How positions turn queries and keys."""

import math
from dataclasses import dataclass
from typing import Literal

from moeworks.errors import check

Scaling = Literal["none", "linear", "yarn", "llama3", "longrope", "ntk_alpha"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and the ways to stretch it beyond its first context."""

    enabled: bool = True
    """False: this attention knows no positions (NoPE)."""
    dim: int | None = None
    """The first `dim` values of a head turn, the rest stay; None means all of them."""
    style: Literal["half", "interleaved"] = "half"
    """What is paired: a value of the first half with one of the second, or neighbours."""
    scaling: Scaling = "none"
    """How the frequencies are stretched: evenly, by parts (YaRN), by bands (Llama 3), by tables, by base."""
    factor: float = 1.0
    """By how much; for ntk_alpha the alpha that raises the base."""
    original_max_seq_len: int | None = None
    """The context before the stretching."""
    attention_factor: float | None = None
    """Multiplies cosines and sines; None means what the scaling's paper says (1 where it says nothing)."""
    beta_fast: float = 32.0
    """YaRN: dimensions that turn more often than this in the original context stay."""
    beta_slow: float = 1.0
    """YaRN: dimensions that turn less often than this are stretched in full."""
    truncate: bool = True
    """YaRN: round the two bounds to whole dimensions."""
    mscale: float | None = None
    """YaRN as in DeepSeek-V2: weight of the logarithm in the attention factor's numerator."""
    mscale_all_dim: float | None = None
    """YaRN as in DeepSeek-V2: the same in its denominator; also scales the softmax of MLA."""
    low_freq_factor: float = 1.0
    """Llama 3: wavelengths above original_max_seq_len over this are stretched in full."""
    high_freq_factor: float = 4.0
    """Llama 3: wavelengths below original_max_seq_len over this stay."""
    short_factors: tuple[float, ...] = ()
    """LongRoPE: a divisor per frequency up to original_max_seq_len."""
    long_factors: tuple[float, ...] = ()
    """LongRoPE: the same for longer sequences."""
    short_mscale: float | None = None
    """LongRoPE: attention factor up to original_max_seq_len; None means attention_factor."""
    long_mscale: float | None = None
    """LongRoPE: the same for longer sequences."""

    def __post_init__(self) -> None:
        check(
            self.dim is None or (self.dim >= 2 and self.dim % 2 == 0),
            "rope.dim",
            self.dim,
            "must be even (rotary positions turn pairs), or None for the whole head",
        )
        check(0 < self.factor < math.inf, "rope.factor", self.factor, "must be positive and finite")
        origin = self.original_max_seq_len
        check(
            origin is not None or self.scaling in ("none", "linear", "ntk_alpha"),
            "rope.original_max_seq_len",
            origin,
            f"is needed by scaling = {self.scaling!r}",
        )
        check(origin is None or origin >= 1, "rope.original_max_seq_len", origin, "must be at least 1")
        check(
            self.scaling != "longrope" or len(self.short_factors) == len(self.long_factors) > 0,
            "rope.long_factors",
            self.long_factors,
            "longrope needs short_factors and long_factors, equally many",
        )
        check(
            self.high_freq_factor >= self.low_freq_factor > 0,
            "rope.high_freq_factor",
            self.high_freq_factor,
            f"must be at least low_freq_factor = {self.low_freq_factor}, and that above 0",
        )
