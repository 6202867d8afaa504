"""Expert choice (Zhou et al. 2022): every expert takes its best tokens, of which there are equally many."""

import torch
from torch import Tensor

_ROUNDING = 1e-9  # 1.1 * 10 is 11.000000000000002: not a reason for a 12th token


def choose_tokens(
    ranking_TE: Tensor,
    share: float,
    *,
    valid_T: Tensor | None = None,
    groups_T: Tensor | None = None,
) -> Tensor:
    """bool [T, E]: the tokens that each expert takes.

    An expert takes C = ceil(share * n) of the n valid tokens of each group, at least 1 and at most n.
    Ties go to the earlier token.

    Args:
        ranking_TE: the scores that experts rank tokens by.
        share: factor * K / E.
        valid_T: False marks tokens that nobody may take.
        groups_T: int64, sets of tokens that are shared out apart from each other; None: all are one.
    """
    tokens = ranking_TE.shape[0]
    limit, first = _limits(tokens, share, valid_T, groups_T, ranking_TE.device)
    scores_ET = ranking_TE.detach().t().clamp(min=torch.finfo(ranking_TE.dtype).min)
    if valid_T is not None:
        scores_ET = scores_ET.masked_fill(~valid_T, -torch.inf)
    order_ET = scores_ET.argsort(dim=1, descending=True, stable=True)
    if groups_T is not None:
        # Stable: inside a group tokens keep the order of their scores.
        order_ET = order_ET.gather(1, groups_T[order_ET].argsort(dim=1, stable=True))
    place_T = torch.arange(tokens, device=ranking_TE.device)
    if groups_T is None:
        taken_ET = (place_T < limit).expand_as(order_ET)
    else:
        group_ET = groups_T[order_ET]
        taken_ET = place_T - first[group_ET] < limit[group_ET]
    chosen_ET = torch.zeros_like(order_ET, dtype=torch.bool).scatter_(1, order_ET, taken_ET)
    chosen_TE = chosen_ET.t()
    return chosen_TE if valid_T is None else chosen_TE & valid_T[:, None]


def _limits(
    tokens: int, share: float, valid_T: Tensor | None, groups_T: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """C of each group, and the place where it starts once tokens are sorted by group; groups are dense."""
    valid = torch.ones(tokens, dtype=torch.int64, device=device) if valid_T is None else valid_T.long()
    if groups_T is None:
        sizes, first = valid.sum(), torch.zeros((), dtype=torch.int64, device=device)
    else:
        # A group per token is the most that there can be; a shape that depends on no value compiles.
        zeros = torch.zeros(tokens, dtype=torch.int64, device=device)
        sizes = zeros.scatter_add(0, groups_T, valid)
        members = zeros.scatter_add(0, groups_T, torch.ones_like(valid))
        first = members.cumsum(0) - members
    limit = (sizes.double() * share - _ROUNDING).ceil().long()
    return torch.minimum(limit.clamp(min=1), sizes), first


def dense_groups(sequence_ids_T: Tensor) -> Tensor:
    """int64 [T]: the same groups, numbered from 0 without gaps."""
    return torch.unique(sequence_ids_T, return_inverse=True)[1]


def cutoffs(ranking_TE: Tensor, share: float, valid_T: Tensor | None = None, *, after: int = 0) -> Tensor:
    """float [E]: the score of the last of the C = ceil(share * n) valid tokens that each expert takes.

    That is the quantile of the expert's scores above which lies the share that it takes. `after` counts
    further down: 1 is the best token that it does not take. Without valid tokens it is 0.
    """
    scores_ET = ranking_TE.detach().t()
    tokens = scores_ET.shape[1]
    if not tokens:
        return scores_ET.new_zeros(scores_ET.shape[0])
    if valid_T is not None:
        scores_ET = scores_ET.masked_fill(~valid_T, -torch.inf)
    limit, _ = _limits(tokens, share, valid_T, None, ranking_TE.device)
    valid = tokens if valid_T is None else valid_T.sum()
    place = (limit - 1 + after).clamp(max=valid - 1).clamp(min=0)
    found_E = scores_ET.sort(dim=1, descending=True).values.index_select(1, place.view(1))[:, 0]
    return found_E.masked_fill(limit == 0, 0.0)
