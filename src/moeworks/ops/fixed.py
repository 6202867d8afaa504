"""Experts from integers alone: hashes, draws, turns. Exact, so the same on every machine and each time.

All arithmetic is on int64 and stays below 2^63; Python's own hash, which differs between processes, has no
part in it. K different experts come from K numbers by counting off: the j-th number chooses one of the E - j
experts that are left.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moeworks.ops.routing import Routing, RoutingContext

PRIME = 2**31 - 1
"""Field of the universal hash functions (Carter and Wegman 1979)."""
NEVER = -1e4
"""Logit of the experts that are not chosen: their softmax is exactly 0."""


def count_off(numbers_TK: Tensor, num_experts: int) -> Tensor:
    """int64 [T, K], different experts of each token: number j modulo E - j, among those that are left."""
    chosen: list[Tensor] = []
    for slot, numbers_T in enumerate(numbers_TK.unbind(dim=1)):
        expert_T = numbers_T % (num_experts - slot)
        if chosen:
            for taken_T in torch.stack(chosen, dim=1).sort(dim=1).values.unbind(dim=1):
                expert_T = expert_T + (expert_T >= taken_T)
        chosen.append(expert_T)
    return torch.stack(chosen, dim=1)


def digits(ids_T: Tensor, num_experts: int, top_k: int) -> Tensor:
    """int64 [T, K]: the id modulo E, what is left of it modulo E - 1, and so on."""
    numbers, rest_T = [], ids_T
    for slot in range(top_k):
        numbers.append(rest_T)
        rest_T = rest_T // (num_experts - slot)
    return torch.stack(numbers, dim=1)


def universal_hashes(ids_T: Tensor, seed: int, top_k: int) -> Tensor:
    """int64 [T, K]: (a id + b) mod p with an a and b of its own for each slot (Carter and Wegman 1979)."""
    a_K, b_K = draws(2 * top_k, [torch.tensor([seed], device=ids_T.device)])[0].chunk(2)
    return ((a_K % (PRIME - 1) + 1) * (ids_T[:, None] % PRIME) + b_K % PRIME) % PRIME


def mixed(numbers: Tensor) -> Tensor:
    """int64 below 2^32: every bit depends on every one of the low 32 bits of `numbers`."""
    numbers = numbers & 0xFFFFFFFF
    for _ in range(2):
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


def draws(top_k: int, parts: Sequence[Tensor]) -> Tensor:
    """int64 [T, K] random numbers below 2^32, a function of `parts`, each an int64 scalar or [T]."""
    seed_T = torch.zeros((), dtype=torch.int64, device=parts[0].device)
    for part in parts:
        seed_T = mixed(seed_T + part)
    return mixed(seed_T[:, None] + torch.arange(1, top_k + 1, device=seed_T.device) * 0x9E3779B)


def balanced_table(counts_V: np.ndarray, num_experts: int, top_k: int) -> np.ndarray:
    """int64 [V, K]: each token, the most frequent first, to the K experts with the least load so far.

    Balanced hashing of Roller et al. 2021 (section 3.1), there for K = 1. Ties go to the lower id. A token
    that never occurs gets a tiny weight, so that such tokens are spread too.
    """
    table = np.empty((len(counts_V), top_k), np.int64)
    # Scaled so that all unseen tokens together weigh less than one occurrence.
    weights = [int(count) * (len(counts_V) + 1) + 1 for count in counts_V]
    loads = [(0, expert) for expert in range(num_experts)]
    for token in np.argsort(-np.asarray(counts_V, np.int64), kind="stable"):
        least = [heapq.heappop(loads) for _ in range(top_k)]
        table[token] = [expert for _, expert in least]
        for load, expert in least:
            heapq.heappush(loads, (load + weights[token], expert))
    return table


def even_routing(
    expert_ids_TK: Tensor, num_experts: int, scale: float, context: RoutingContext, like: Tensor
) -> Routing:
    """Routing to experts without scores: each of a token's K has the weight scale / K, in `like`'s dtype.

    The probabilities are 1 / K for these experts and 0 for the others, without gradient.
    """
    shape = (expert_ids_TK.shape[0], num_experts)
    logits_TE = like.new_full(shape, NEVER).scatter_(1, expert_ids_TK, 0.0)
    top_k = expert_ids_TK.shape[1]
    return Routing(
        expert_ids_TK=expert_ids_TK,
        routing_weights_TK=like.new_full(tuple(expert_ids_TK.shape), scale / top_k),
        router_logits_TE=logits_TE,
        router_probs_TE=like.new_zeros(shape).scatter_(1, expert_ids_TK, 1.0 / top_k),
        valid_T=context.valid_T,
        sequence_ids_T=context.sequence_ids_T,
    )
