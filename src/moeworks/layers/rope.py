"""Rotary position embedding (Su et al. 2021), half-split style: the first half of a head pairs the second."""

import torch
from torch import Tensor

from moeworks.ops.native import rope as native
from moeworks.ops.native.use import as_rows, from_rows, serving


def rope_table(max_seq_len: int, head_dim: int, theta: float) -> Tensor:
    """float32 [2, max_seq_len, P/2]: cosines and sines of position * theta^(-2i/P)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()]).float()


def apply_rope(x_BHLP: Tensor, table_2LP: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + P/2}); the angles are those of the L positions in the table."""
    if not x_BHLP.numel() or serving(x_BHLP, table_2LP) is None:
        return reference_rope(x_BHLP, table_2LP)
    rows, repeats = as_rows(x_BHLP)
    return from_rows(native.rope(rows, table_2LP.contiguous(), repeats, False), x_BHLP)


def reference_rope(x_BHLP: Tensor, table_2LP: Tensor) -> Tensor:
    """The same in torch's functions."""
    cos, sin = table_2LP.to(x_BHLP.dtype)
    first, second = x_BHLP.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
