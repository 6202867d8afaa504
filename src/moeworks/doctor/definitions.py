"""The definitions that models are held against, written out once more and slowly.

They share no code with moeworks.ops, so that a mistake there does not excuse itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moeworks.doctor.subject import Claims
from moeworks.ops.routing import Routing


def scores(logits_TE: Tensor, score: str) -> Tensor:
    """Softmax over experts, sigmoid, or sqrt(softplus)."""
    if score == "softmax":
        shifted = (logits_TE - logits_TE.amax(1, keepdim=True)).exp()
        return shifted / shifted.sum(1, keepdim=True)
    if score == "sigmoid":
        return 1 / (1 + (-logits_TE).exp())
    return torch.log1p(logits_TE.exp()).sqrt()


def selection(choice_TE: Tensor, top_k: int, claims: Claims) -> Tensor:
    """int64 [T, K], ascending: the best by `choice`, inside the best groups where there are any."""
    rows = []
    for row in choice_TE.tolist():
        allowed = set(range(len(row)))
        if claims.num_groups > 1:
            size = len(row) // claims.num_groups
            best = 1 if claims.group_score == "max" else 2
            groups = [sorted(row[g * size : (g + 1) * size])[-best:] for g in range(claims.num_groups)]
            order = sorted(range(claims.num_groups), key=lambda g, s=groups: (-sum(s[g]), g))
            allowed = {e for g in order[: claims.top_k_groups] for e in range(g * size, (g + 1) * size)}
        order = sorted(allowed, key=lambda e, r=row: (-r[e], e))
        rows.append(sorted(order[:top_k]))
    return torch.tensor(rows).view(len(rows), top_k)


def weights(logits_TE: Tensor, ids_TK: Tensor, claims: Claims) -> Tensor:
    """float [T, K]: the chosen scores, renormalised and scaled as claimed; no bias in them."""
    assert claims.score is not None
    chosen_TK = scores(logits_TE.double(), claims.score).gather(1, ids_TK)
    if claims.renormalize:
        chosen_TK = chosen_TK / chosen_TK.sum(1, keepdim=True).clamp(min=1e-20)
    return chosen_TK * (claims.scale or 1.0)


def _valid(routing: Routing) -> Tensor:
    if routing.valid_T is None:
        return torch.ones(len(routing.expert_ids_TK), dtype=torch.bool)
    return routing.valid_T.bool()


def _shares(probs_TE: Tensor) -> Tensor:
    """Probabilities that sum to 1 for each token."""
    return probs_TE / probs_TE.sum(1, keepdim=True)


def _counts(ids_TK: Tensor, num_experts: int) -> Tensor:
    return torch.stack([(ids_TK == e).sum() for e in range(num_experts)]).to(torch.float64)


def switch(routing: Routing, unbiased_TK: Tensor) -> Tensor:
    """E * sum_e f_e P_e of one layer: f the share of assignments, P the mean probability (Switch, eq. 4)."""
    keep = _valid(routing)
    experts = routing.router_probs_TE.shape[1]
    counts = _counts(unbiased_TK[keep], experts)
    share = counts / counts.sum()
    mean = _shares(routing.router_probs_TE[keep].double()).mean(0)
    return experts * (share * mean).sum()


def pooled_switch(routings: Sequence[Routing], ids: Sequence[Tensor]) -> Tensor:
    """The Switch loss of all layers' tokens thrown together: the wrong definition that pooling gives."""
    experts = routings[0].router_probs_TE.shape[1]
    keep = [_valid(r) for r in routings]
    counts = _counts(torch.cat([i[k] for i, k in zip(ids, keep, strict=True)]), experts)
    probs = torch.cat([_shares(r.router_probs_TE[k].double()) for r, k in zip(routings, keep, strict=True)])
    return experts * (counts / counts.sum() * probs.mean(0)).sum()


def sequence(routing: Routing, top_k_TK: Tensor) -> Tensor:
    """The mean over sequences of E / (K T) sum_t 1[e chosen] * mean_t s' (DeepSeek-V3, section 2.1.2).

    Weighted by the sequences' valid tokens.
    """
    keep, total = _valid(routing), torch.zeros((), dtype=torch.float64)
    experts, top_k = routing.router_probs_TE.shape[1], top_k_TK.shape[1]
    ids = torch.zeros_like(keep, dtype=torch.int64)
    if routing.sequence_ids_T is not None:
        ids = routing.sequence_ids_T
    for number in ids.unique():
        mine = keep & (ids == number)
        if mine.any():
            f_E = _counts(top_k_TK[mine], experts) * experts / (top_k * mine.sum())
            p_E = _shares(routing.router_probs_TE[mine].double()).mean(0)
            total = total + (f_E * p_E).sum() * mine.sum() / keep.sum()
    return total


def z(routing: Routing) -> Tensor:
    """mean_t (log sum_e exp logit)^2 (ST-MoE, eq. 5)."""
    logits_TE = routing.router_logits_TE[_valid(routing)].double()
    return torch.log(logits_TE.exp().sum(1)).square().mean()


def entropy(routing: Routing) -> Tensor:
    """2 - H(q) / log E for the mean probability q."""
    q_E = _shares(routing.router_probs_TE[_valid(routing)].double()).mean(0)
    return 2 + (q_E * q_E.log()).sum() / math.log(len(q_E))


def importance(routing: Routing) -> Tensor:
    """1 + the squared coefficient of variation of the summed probabilities (Shazeer et al. 2017, eq. 7)."""
    q_E = _shares(routing.router_probs_TE[_valid(routing)].double()).mean(0)
    return 1 + (q_E - q_E.mean()).square().mean() / q_E.mean().square()


def capacity(assignments: int, experts: int, claims: Claims, tokens: int) -> int:
    """ceil(factor * T * K / E) (Switch, section 2.2), at least min_capacity and at most T."""
    assert claims.capacity_factor is not None
    wanted = math.ceil(claims.capacity_factor * assignments / experts - 1e-9)
    return min(max(wanted, claims.min_capacity), tokens)
