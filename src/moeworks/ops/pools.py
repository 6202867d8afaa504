"""Pools of experts: tokens of a type have the experts of its pool alone (MoMa, Lin et al. 2024; VLMo, Bao et
al. 2022; ERNIE 4.5, 2025).

P counts types. **Balanced** with pools means: the assignments of each type are spread evenly over its pool,
however frequent the type is. So an expert's fair load is the sum of A_p / |pool p| over the pools that it is
in, with A_p the assignments of type p. A balance loss is that of each type inside its pool, weighted by the
type's share of the tokens: 1.0 is balanced.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.ops.routing import Routing, count_assignments

Pools = Sequence[Sequence[int]]
"""Per type the ids of its experts, ascending."""


def pool_table(pools: Pools, num_experts: int) -> Tensor:
    """bool [P, E]: the experts of each type."""
    table_PE = torch.zeros(len(pools), num_experts, dtype=torch.bool)
    for row_E, experts in zip(table_PE, pools, strict=True):
        row_E[list(experts)] = True
    return table_PE


def reachable(table_PE: Tensor, types_T: Tensor | None) -> Tensor:
    """bool [T, E]: the experts that each token may have.

    Raises ConfigError without types, and on a CPU for a type without a pool; elsewhere, and compiled, torch
    raises when it looks up the row.
    """
    count = len(table_PE)
    check(
        types_T is not None,
        "token_types",
        None,
        f"the model has {count} pools of experts (router.pools), so it must be told which type each token"
        " has: moe(x, token_types=...), decoder(tokens, token_types_BL=...), or --domain NAME of a command",
    )
    assert types_T is not None
    if types_T.device.type == "cpu" and types_T.numel() and not torch.compiler.is_compiling():
        for value in (int(types_T.min()), int(types_T.max())):
            check(0 <= value < count, "token_types", value, f"must lie in 0 .. {count - 1}: a pool for each")
    return table_PE.index_select(0, types_T)


def within_pools(routing: Routing) -> Iterator[tuple[Tensor, Routing]]:
    """Per type its valid tokens, a scalar, and the decision over them and the experts of their pool.

    Tokens of other types are padding in it, experts are numbered by their place in the pool.
    """
    assert routing.token_types_T is not None
    for number, experts in enumerate(routing.pools):
        columns = torch.tensor(experts, device=routing.expert_ids_TK.device)
        # All other experts are empty slots: tokens of this type have none of them.
        place = torch.full((routing.num_experts + 1,), len(experts), device=columns.device)
        place[columns] = torch.arange(len(experts), device=columns.device)
        valid_T = routing.token_types_T == number
        if routing.valid_T is not None:
            valid_T = valid_T & routing.valid_T
        unbiased = routing.unbiased_ids_TK
        own = Routing(
            expert_ids_TK=place[routing.expert_ids_TK],
            routing_weights_TK=routing.routing_weights_TK,
            router_logits_TE=routing.router_logits_TE[:, columns],
            router_probs_TE=routing.router_probs_TE[:, columns],
            valid_T=valid_T,
            sequence_ids_T=routing.sequence_ids_T,
            unbiased_ids_TK=None if unbiased is None else place[unbiased],
            variable=routing.variable,
            ranked=routing.ranked,
        )
        yield valid_T.sum(), own


def counts_by_type(routing: Routing, expert_ids_TK: Tensor) -> Tensor:
    """int64 [P, E]: assignments of the valid tokens of each type."""
    types_T, ids = routing.token_types_T, routing.num_experts + 1
    assert types_T is not None
    # An expert of a type is an expert of its own, and so is its empty slot, which is left out in the end.
    flat = count_assignments(
        expert_ids_TK + types_T[:, None] * ids, len(routing.pools) * ids, routing.valid_T
    )
    return flat.view(len(routing.pools), ids)[:, :-1]


def fair_loads(counts_PE: Tensor, pools: Pools) -> tuple[Tensor, int]:
    """int64 [E] and a divisor: each expert's load where every type is spread evenly over its pool."""
    divisor = math.lcm(*(len(experts) for experts in pools))
    each_P = counts_PE.sum(dim=1) * torch.tensor(
        [divisor // len(experts) for experts in pools], device=counts_PE.device
    )
    table_PE = pool_table(pools, counts_PE.shape[1]).to(counts_PE.device)
    return (each_P[:, None] * table_PE).sum(dim=0), divisor


def in_each_pool(
    choose: Callable[[Tensor, Tensor, int], Tensor],
    values_TE: Tensor,
    types_T: Tensor,
    pools: Pools,
    out: Tensor,
) -> Tensor:
    """`out` [T, E] with each type's part replaced by choose(its rows of values, their numbers, the type).

    What `choose` gets and returns has the columns of the type's pool alone.
    """
    for number, experts in enumerate(pools):
        rows = (types_T == number).nonzero().flatten()
        columns = torch.tensor(experts, device=rows.device)
        if len(rows):
            own = choose(values_TE[rows][:, columns], rows, number)
            out[rows[:, None], columns] = own.to(out.dtype)
    return out
