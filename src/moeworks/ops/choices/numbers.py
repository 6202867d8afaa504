"""Choices with a varying number of experts per token: top-p and threshold."""

import torch
from torch import Tensor

from moeworks.ops.scoring import stable_top_k


def choose_top_p(probs_TE: Tensor, p: float, most: int) -> Tensor:
    """int64 [T, most]: the fewest best experts whose probabilities sum to p (Huang et al. 2024, eq. 4).

    At least one and at most `most`; E in slots that stay empty. Probabilities are normalised over experts;
    experts outside a token's pool may have -inf.
    """
    share_TE = probs_TE.clamp(min=0)
    share_TE = share_TE / share_TE.sum(dim=1, keepdim=True).clamp(min=torch.finfo(probs_TE.dtype).tiny)
    ids_TK = stable_top_k(probs_TE, most)
    share_TK = share_TE.gather(1, ids_TK)
    before_TK = share_TK.cumsum(dim=1) - share_TK
    needed_TK = before_TK < p
    needed_TK[:, 0] = True
    return ids_TK.masked_fill(~needed_TK, probs_TE.shape[1])


def choose_above(ranking_TE: Tensor, threshold: Tensor | float, least: int, most: int) -> Tensor:
    """int64 [T, most]: the experts with at least `threshold`, `least` to `most` of them, best first.

    E in slots that stay empty.
    """
    experts = ranking_TE.shape[1]
    ids_TK = stable_top_k(ranking_TE, most)
    above_TK = (ranking_TE >= threshold).gather(1, ids_TK)
    above_TK[:, :least] = True
    return ids_TK.masked_fill(~above_TK, experts)
