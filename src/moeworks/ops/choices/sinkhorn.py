"""Sinkhorn: a relaxed global assignment under equal load (S-BASE, Clark et al. 2022, section 3.1)."""

import torch
from torch import Tensor


def sinkhorn_plan(logits_TE: Tensor, iterations: int, valid_T: Tensor | None = None) -> Tensor:
    """float [T, E], log of the plan: exp(logits) with rows scaled to sum to 1 and columns to T / E.

    The entropy-regularised optimal transport between tokens and experts. `iterations` rounds of columns,
    then rows; rows therefore sum to 1 exactly and columns in the limit. Padding has mass 0, -inf in the plan.
    In logarithms: exp(logits) over- and underflows.
    """
    plan_TE = logits_TE.detach()
    if valid_T is not None:
        plan_TE = plan_TE.masked_fill(~valid_T[:, None], -torch.inf)
    tokens = torch.tensor(plan_TE.shape[0], device=plan_TE.device) if valid_T is None else valid_T.sum()
    column = (tokens.clamp(min=1).to(plan_TE.dtype) / plan_TE.shape[1]).log()
    for _ in range(iterations):
        plan_TE = plan_TE - (_log_sum(plan_TE, 0) - column)
        plan_TE = plan_TE - _log_sum(plan_TE, 1)
    return plan_TE


def _log_sum(plan_TE: Tensor, dim: int) -> Tensor:
    """logsumexp, but 0 where all entries are -inf, so that rows without mass stay unchanged."""
    total = plan_TE.logsumexp(dim=dim, keepdim=True)
    return total.masked_fill(total == -torch.inf, 0.0)
