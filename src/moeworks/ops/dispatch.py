"""Moving tokens to experts: capacity, and the order in which assignments are computed."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moeworks.config.model import CapacityConfig
from moeworks.ops.pools import counts_by_type, fair_loads
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class Dispatch:
    """Assignments sorted by expert. Those that no expert computes come last."""

    order_N: Tensor
    """int64: position in the sorted order -> assignment (token * K + slot)."""
    inverse_N: Tensor
    """int64: assignment -> position in the sorted order."""
    rows_per_expert_E: Tensor
    """int64, of the routed experts only: rows that each computes."""


def dispatch(routing: Routing, num_experts: int) -> Dispatch:
    """Sort the assignments that one of the `num_experts` routed experts computes by expert id.

    The sort is stable: within an expert tokens keep their order, so results repeat.
    """
    ids_TK = routing.expert_ids_TK.clamp(max=num_experts)
    if routing.kept_TK is not None:
        ids_TK = ids_TK.masked_fill(~routing.kept_TK, num_experts)
    ids_N = ids_TK.reshape(-1)
    order_N = ids_N.argsort(stable=True)
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
    rows = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids_N.device)
    rows = rows.scatter_add(0, ids_N, torch.ones_like(ids_N))
    return Dispatch(order_N, inverse_N, rows[:num_experts])


def apply_capacity(routing: Routing, config: CapacityConfig, *, training: bool) -> Routing:
    """The routing with `kept_TK` set: padding and empty slots are never computed, experts over capacity drop.

    Capacity is ceil(factor * A / E) (Switch, section 2.2) over the A = T * K assignments of valid tokens, at
    least min_capacity, or with pools of experts the factor times an expert's fair load (moeworks.ops.pools);
    since a token chooses an expert once, it never binds above T. By position, later
    tokens (then later slots) are dropped; by probability, those with the smallest router probability; by
    batch priority, later slots first, and in a slot the tokens whose best router probability is smallest.
    """
    factor = config.capacity_factor if training else config.eval_capacity_factor
    present_TK = routing.filled_TK
    if routing.valid_T is not None:
        valid_TK = routing.valid_T[:, None].expand_as(routing.expert_ids_TK)
        present_TK = valid_TK if present_TK is None else present_TK & valid_TK
    if factor is None:
        return replace(routing, kept_TK=present_TK)
    capacity = _capacity(routing, factor, config.min_capacity)
    if isinstance(capacity, Tensor) and capacity.dim() == 1:
        capacity = capacity[routing.expert_ids_TK.clamp(max=routing.num_experts - 1)]
    kept_TK = _rank_in_expert(routing, config.drop_policy) < capacity
    return replace(routing, kept_TK=kept_TK if present_TK is None else kept_TK & present_TK)


def _capacity(routing: Routing, factor: float, min_capacity: int) -> int | Tensor:
    """Assignments that an expert takes; with pools [E], one limit per expert.

    A tensor if the number of assignments is a tensor, so that the host never waits for the device.
    """
    if routing.pools:
        fair_E, times = fair_loads(counts_by_type(routing, routing.expert_ids_TK), routing.pools)
        exact_E = (fair_E.double() / times * factor - _ROUNDING).ceil().long()
        return torch.minimum(exact_E.clamp(min=min_capacity), routing.num_tokens)
    tokens = routing.expert_ids_TK.shape[0]
    if routing.valid_T is None and not routing.variable:
        assigned = tokens * routing.top_k
        return min(max(_ceil(factor * assigned / routing.num_experts), min_capacity), tokens)
    share = routing.num_assignments().double() * factor / routing.num_experts
    exact = (share - _ROUNDING).ceil().long()
    return torch.minimum(exact.clamp(min=min_capacity), routing.num_tokens)


_ROUNDING = 1e-9  # 1.1 * 10 is 11.000000000000002: not a reason for a 12th row


def _ceil(value: float) -> int:
    return math.ceil(value - _ROUNDING)


def _rank_in_expert(routing: Routing, drop_policy: str) -> Tensor:
    """int64 [T, K]: how many assignments to the same expert come before each one. Padding comes last."""
    ids_N = routing.expert_ids_TK.reshape(-1)
    priority_N = _priority(routing, drop_policy)
    if routing.valid_T is not None:
        padding_N = (~routing.valid_T).repeat_interleave(routing.top_k)
        priority_N = priority_N[padding_N[priority_N].to(torch.int8).argsort(stable=True)]
    order_N = priority_N[ids_N[priority_N].argsort(stable=True)]
    sorted_ids_N = ids_N[order_N]
    first_N = torch.searchsorted(sorted_ids_N, sorted_ids_N)
    rank_N = torch.arange(order_N.numel(), device=ids_N.device) - first_N
    # Sorting the order inverts it; a scatter would be cheaper, but torch 2.13's inductor then compares the
    # ranks with the capacity before they are written.
    return rank_N[order_N.argsort()].view_as(routing.expert_ids_TK)


def _priority(routing: Routing, drop_policy: str) -> Tensor:
    """int64 [N]: the assignments in the order in which they take capacity."""
    ids_TK = routing.expert_ids_TK
    places_TK = torch.arange(ids_TK.numel(), device=ids_TK.device).view_as(ids_TK)
    if drop_policy == "position":
        return places_TK.reshape(-1)
    # Empty slots take no capacity, so their placeholder probability does not matter.
    chosen_TK = routing.router_probs_TE.detach().gather(1, ids_TK.clamp(max=routing.num_experts - 1))
    if drop_policy == "probability":
        return chosen_TK.reshape(-1).argsort(descending=True, stable=True)
    best_T = chosen_TK.masked_fill(ids_TK == routing.num_experts, -torch.inf).amax(dim=1)
    return places_TK[best_T.argsort(descending=True, stable=True)].t().reshape(-1)
