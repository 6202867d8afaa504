"""Rotary position embedding (Su et al. 2021) and its scalings.

Sources of the scalings: YaRN (Peng et al. 2023, section 3), Llama 3.1 (Meta 2024, its published model.py),
LongRoPE (Ding et al. 2024, section 3.2), NTK-aware alpha (Hunyuan's published configs).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from moeworks.config.rope import RopeConfig
from moeworks.errors import check
from moeworks.ops.native import rope as native
from moeworks.ops.native.use import as_rows, from_rows, serving


def rope_table(max_seq_len: int, head_dim: int, theta: float) -> Tensor:
    """float32 [2, max_seq_len, P/2]: cosines and sines of position * theta^(-2i/P)."""
    return rope_angles(torch.arange(max_seq_len), theta, RopeConfig(), head_dim)


def rope_angles(
    positions: Tensor,
    theta: float,
    rope: RopeConfig,
    head_dim: int,
    *,
    longest: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[2, *positions, dim/2]: cosines and sines, times the scaling's attention factor.

    Args:
        positions: int64, any shape.
        theta: base of the frequencies.
        rope: the scaling, and how much of a head turns.
        head_dim: width of a head.
        longest: length of the whole sequence, by which LongRoPE chooses its factors.
        dtype: of the result; it is computed in float64.
    """
    long = rope.scaling == "longrope" and longest > (rope.original_max_seq_len or 0)
    frequencies = rope_frequencies(theta, rope, rope.dim or head_dim, long=long)
    radians = torch.tensor(frequencies, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64).unsqueeze(-1) * radians
    return (torch.stack([angles.cos(), angles.sin()]) * attention_factor(rope, long=long)).to(dtype)


def rope_frequencies(theta: float, rope: RopeConfig, dim: int, *, long: bool = False) -> tuple[float, ...]:
    """dim/2 radians per position, fastest first."""
    if rope.scaling == "ntk_alpha":
        theta = theta * rope.factor ** (dim / (dim - 2))
    plain = [theta ** (-i / dim) for i in range(0, dim, 2)]
    if rope.scaling == "none" or rope.scaling == "ntk_alpha":
        return tuple(plain)
    if rope.scaling == "longrope":
        factors = rope.long_factors if long else rope.short_factors
        check(
            len(factors) == len(plain),
            "rope.long_factors",
            len(factors),
            f"must hold {len(plain)} factors, one per rotated pair",
        )
        return tuple(f / factor for f, factor in zip(plain, factors, strict=True))
    if rope.scaling == "linear":
        kept = [0.0] * len(plain)
    else:
        kept = _yarn_kept(theta, rope, dim) if rope.scaling == "yarn" else _llama3_kept(plain, rope)
    return tuple(f / rope.factor * (1 - k) + f * k for f, k in zip(plain, kept, strict=True))


def attention_factor(rope: RopeConfig, *, long: bool = False) -> float:
    """Attention factor of the scaling, which multiplies cosines and sines."""
    if rope.scaling == "longrope":
        mscale = rope.long_mscale if long else rope.short_mscale
        if mscale is not None:
            return mscale
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.scaling == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
        return yarn_mscale(rope.factor)
    if rope.scaling == "longrope" and rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_seq_len or math.e))
    return 1.0


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature, 1 + 0.1 * weight * ln(factor) for factors above 1."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def apply_rope(x: Tensor, table: Tensor, style: Literal["half", "interleaved"] = "half") -> Tensor:
    """Rotate pairs of values of each head by `table`; values beyond the table's width stay unchanged.

    Args:
        x: [..., L, P].
        table: [2, L, dim/2], or anything whose last dimensions broadcast against those of x.
        style: pairs are (x_i, x_{i + dim/2}) or (x_{2i}, x_{2i + 1}).
    """
    whole = table.dim() == 3 and x.dim() >= 3 and 2 * table.shape[-1] == x.shape[-1]
    if style != "half" or not whole or not x.numel() or serving(x, table) is None:
        return reference_rope(x, table, style)
    rows, repeats = as_rows(x)
    return from_rows(native.rope(rows, table.contiguous(), repeats, False), x)


def reference_rope(x: Tensor, table: Tensor, style: Literal["half", "interleaved"] = "half") -> Tensor:
    """Reference of apply_rope in plain torch, for every style, dtype and device."""
    cos, sin = table.to(x.dtype)
    dim = 2 * table.shape[-1]
    turned, still = (x, None) if x.shape[-1] == dim else (x[..., :dim], x[..., dim:])
    if style == "half":
        first, second = turned.chunk(2, dim=-1)
        parts = [first * cos - second * sin, second * cos + first * sin]
        return torch.cat(parts if still is None else [*parts, still], dim=-1)
    first, second = turned[..., 0::2], turned[..., 1::2]
    both = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    return both if still is None else torch.cat([both, still], dim=-1)


def _yarn_kept(theta: float, rope: RopeConfig, dim: int) -> list[float]:
    """YaRN's shares of the unscaled frequencies: 1 (kept) to 0 (stretched in full)."""
    context = rope.original_max_seq_len or 1

    def dimension(turns: float) -> float:
        """The dimension whose angle makes `turns` turns in the original context."""
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return [1 - _clamp((i - low) / (high - low)) for i in range(dim // 2)]


def _llama3_kept(plain: list[float], rope: RopeConfig) -> list[float]:
    """Llama 3's shares of the unscaled frequencies, by how often each turns in the original context."""
    context, low, high = rope.original_max_seq_len or 1, rope.low_freq_factor, rope.high_freq_factor
    turns = [context * f / (2 * math.pi) for f in plain]
    if high == low:
        return [float(t > high) for t in turns]
    return [_clamp((t - low) / (high - low)) for t in turns]


def _clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)
