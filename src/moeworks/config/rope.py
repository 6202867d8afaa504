"""Config of rotary positions, which rotate queries and keys."""

import math
from dataclasses import dataclass
from typing import Literal

from moeworks.errors import check

Scaling = Literal["none", "linear", "yarn", "llama3", "longrope", "ntk_alpha"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and the ways to stretch it beyond its first context."""

    enabled: bool = True
    """Whether queries and keys are rotated; False is attention without positions (NoPE)."""
    dim: int | None = None
    """Values of a head that are rotated, from the first on; None is all of them."""
    style: Literal["half", "interleaved"] = "half"
    """Pairs that are rotated: a value of the first half with one of the second, or neighbours."""
    scaling: Scaling = "none"
    """Way to stretch the frequencies: evenly, by parts (YaRN), by bands (Llama 3), by tables, or by base."""
    factor: float = 1.0
    """Factor of the stretching; for ntk_alpha the alpha that raises the base."""
    original_max_seq_len: int | None = None
    """Longest sequence before the stretching."""
    attention_factor: float | None = None
    """Factor of cosines and sines; None is that of the scaling's paper, or 1 where it has none."""
    beta_fast: float = 32.0
    """YaRN: rotations within the original context above which a dimension is not stretched."""
    beta_slow: float = 1.0
    """YaRN: rotations within the original context below which a dimension is stretched in full."""
    truncate: bool = True
    """YaRN: whether the two bounds are rounded to whole dimensions."""
    mscale: float | None = None
    """YaRN as in DeepSeek-V2: weight of the logarithm in the attention factor's numerator."""
    mscale_all_dim: float | None = None
    """YaRN as in DeepSeek-V2: weight of the logarithm in the denominator; it also scales the softmax of
    MLA."""
    low_freq_factor: float = 1.0
    """Llama 3: wavelengths above original_max_seq_len divided by this are stretched in full."""
    high_freq_factor: float = 4.0
    """Llama 3: wavelengths below original_max_seq_len divided by this are not stretched."""
    short_factors: tuple[float, ...] = ()
    """LongRoPE: divisors of the frequencies, for sequences up to original_max_seq_len."""
    long_factors: tuple[float, ...] = ()
    """LongRoPE: divisors of the frequencies, for longer sequences."""
    short_mscale: float | None = None
    """LongRoPE: attention factor of sequences up to original_max_seq_len; None is attention_factor."""
    long_mscale: float | None = None
    """LongRoPE: attention factor of longer sequences; None is attention_factor."""

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
