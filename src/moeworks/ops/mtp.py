"""The loss of multi-token prediction (DeepSeek-V3, section 2.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mtp_loss(
    ahead_BLV: Sequence[Tensor],
    targets_BL: Tensor,
    valid_BL: Tensor | None = None,
    document_ids_BL: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropies over positions, averaged over depths: a float scalar, nats.

    Args:
        ahead_BLV: of depth k (from 1), logits [B, L - k, V] whose position i predicts targets[i + k].
        targets_BL: int64, the token after each position.
        valid_BL: bool, False where a target is padding.
        document_ids_BL: int64; a prediction that would cross into another document does not count.

    A step's loss is this over its number of tokens, times the coefficient (0.3, later 0.1 in DeepSeek-V3).
    Positions at a row's end predict fewer tokens, so depths sum over fewer of them.
    """
    total = targets_BL.new_zeros((), dtype=torch.float32)
    for depth, logits in enumerate(ahead_BLV, 1):
        wide = logits if logits.dtype.itemsize > 4 else logits.float()
        losses = F.cross_entropy(wide.flatten(0, 1), targets_BL[:, depth:].flatten(), reduction="none")
        counted = losses.new_ones(losses.shape)
        if valid_BL is not None:
            counted = counted * valid_BL[:, depth:].flatten()
        if document_ids_BL is not None:
            same = document_ids_BL[:, depth:] == document_ids_BL[:, :-depth]
            counted = counted * same.flatten()
        total = total + (losses * counted).sum()
    return total / max(len(ahead_BLV), 1)
