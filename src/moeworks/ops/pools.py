"""Pools of experts: tokens of a type use only the experts of its pool (MoMa, Lin et al. 2024; VLMo, Bao et
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

from moeworks.errors import check, present
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

    Raises ConfigError without types, and on the CPU for a type without a pool. On other devices, and when
    compiled, torch raises at the row lookup instead.
    """
    count = len(table_PE)
    types_T = present(
        types_T,
        "token_types",
        f"the model has {count} pools of experts (router.pools) and needs the type of each token: pass"
        " moe(x, token_types=...), decoder(tokens, token_types_BL=...), or --domain NAME to a command",
    )
    if types_T.device.type == "cpu" and types_T.numel() and not torch.compiler.is_compiling():
        for value in (int(types_T.min()), int(types_T.max())):
            check(
                0 <= value < count,
                "token_types",
                value,
                f"must lie in 0 .. {count - 1}, the numbers of the pools",
            )
    return table_PE.index_select(0, types_T)


def within_pools(routing: Routing) -> Iterator[tuple[Tensor, Routing]]:
    """For each type, its number of valid tokens and the Routing of these tokens over their pool's experts.

    In that Routing, tokens of other types are padding, and an expert's id is its place in the pool.
    """
    assert routing.token_types_T is not None
    for number, experts in enumerate(routing.pools):
        columns = torch.tensor(experts, device=routing.expert_ids_TK.device)
        # Experts outside the pool become empty slots: tokens of this type never use them.
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
    """int64 [P, E]: assignments of each type's valid tokens to each expert."""
    types_T, ids = routing.token_types_T, routing.num_experts + 1
    assert types_T is not None
    # Each (type, expert) pair gets its own id; each type's empty slot too, which the last line drops.
    flat = count_assignments(
        expert_ids_TK + types_T[:, None] * ids, len(routing.pools) * ids, routing.valid_T
    )
    return flat.view(len(routing.pools), ids)[:, :-1]


def fair_loads(counts_PE: Tensor, pools: Pools) -> tuple[Tensor, int]:
    """int64 [E] and a divisor: load * divisor of each expert if every type fills its pool evenly."""
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
