"""The loss of multi-token prediction (DeepSeek-V3, section 2.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moeworks.ops.cross_entropy import linear_cross_entropy
from moeworks.ops.head import Head


def mtp_loss(
    ahead_BLD: Sequence[Tensor],
    head: Head,
    targets_BL: Tensor,
    valid_BL: Tensor | None = None,
    document_ids_BL: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropies over positions, averaged over depths: a float scalar, nats.

    Logits exist for a chunk of positions at a time, and gradients when this returns, as in
    ops.cross_entropy.

    Args:
        ahead_BLD: the stream [B, L - k, D] of each depth k (from 1); position i predicts targets[i + k].
        head: what makes logits of it.
        targets_BL: int64, the token after each position.
        valid_BL: bool, False where a target is padding.
        document_ids_BL: int64; a prediction that would cross into another document does not count.

    A step's loss is this over its number of tokens, times the coefficient (0.3, later 0.1 in DeepSeek-V3).
    Positions at a row's end predict fewer tokens, so depths sum over fewer of them.
    """
    total = targets_BL.new_zeros((), dtype=torch.float32)
    for depth, stream_BLD in enumerate(ahead_BLD, 1):
        counted_BL = torch.ones_like(targets_BL[:, depth:], dtype=torch.bool)
        if valid_BL is not None:
            counted_BL = counted_BL & valid_BL[:, depth:]
        if document_ids_BL is not None:
            counted_BL = counted_BL & (document_ids_BL[:, depth:] == document_ids_BL[:, :-depth])
        factors = head.factors(stream_BLD.flatten(0, 1))
        total = total + linear_cross_entropy(*factors, targets_BL[:, depth:].flatten(), counted_BL.flatten())
    return total / max(len(ahead_BLD), 1)
