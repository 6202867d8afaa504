"""Routers without parameters: the experts of a token are a function of integers that are known beforehand."""

from abc import abstractmethod
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.config.fixed_choices import HashChoice, RandomChoice
from moeworks.config.router import RouterConfig
from moeworks.errors import check, present
from moeworks.layers.router import RouterModule, Statistics, at_least_float32
from moeworks.ops.fixed import balanced_table, count_off, digits, draws, even_routing, universal_hashes
from moeworks.ops.routing import Routing, RoutingContext


class FixedRouter(RouterModule):
    """Base of the routers without parameters: subclasses choose ids; each weight is routing_scale / top_k."""

    needs = "token_ids"
    """Field of RoutingContext, without `_T`, that the choice of experts depends on."""

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__()
        self.config = config

    def reset_parameters(self) -> None:
        """Do nothing: there are no parameters."""

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens; of `x_TD` only the dtype matters. Raises ConfigError if `context` lacks `needs`."""
        context = context or RoutingContext()
        values_T = getattr(context, f"{self.needs}_T")
        check(
            values_T is not None,
            "router.choice",
            self.config.choice.kind,
            f"needs {self.needs}: call the layer as moe(x, {self.needs}=...), as a decoder does",
        )
        ids_TK = self.experts(context)
        config, like = self.config, at_least_float32(x_TD.detach())
        return even_routing(ids_TK, config.num_routes, config.routing_scale, context, like)

    def replayed(self, routing: Routing, expert_ids_TK: Tensor, *, variable: bool) -> Routing:
        """`routing` with the recorded experts, equally weighted. Raises ConfigError for empty slots."""
        rule = "must not be there: this router weighs top_k experts equally; replay records without them"
        check(not variable, "replay.routings", "empty slots", rule)
        config, like = self.config, routing.routing_weights_TK
        even = even_routing(expert_ids_TK, config.num_routes, config.routing_scale, RoutingContext(), like)
        return replace(
            routing,
            expert_ids_TK=even.expert_ids_TK,
            routing_weights_TK=even.routing_weights_TK,
            router_logits_TE=even.router_logits_TE,
            router_probs_TE=even.router_probs_TE,
        )

    @abstractmethod
    def experts(self, context: RoutingContext) -> Tensor:
        """int64 [T, K]: the ids of each token's experts, all different."""


class HashRouter(FixedRouter):
    """Router that chooses experts by a hash of the token id (Roller et al. 2021)."""

    table_VK: Tensor | None

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert isinstance(config.choice, HashChoice)
        self.choice = config.choice
        table = None
        if self.choice.function == "balanced":
            size = present(
                self.choice.vocab_size,
                "router.choice.vocab_size",
                "must be given for function = 'balanced' outside of a model: its table has a row per token",
            )
            # Until token frequencies are known, experts in turn: balanced if all tokens are equally frequent.
            places = torch.arange(size)[:, None] * config.top_k + torch.arange(config.top_k)
            table = places % config.num_routes
        self.register_buffer("table_VK", table)
        self.wants_token_counts = table is not None

    @torch.no_grad()
    def set_token_counts_(self, counts_V: np.ndarray) -> None:
        """Rebuild the table of function = 'balanced'; the other functions ignore counts."""
        if self.table_VK is None:
            return
        size = self.table_VK.shape[0]
        check(
            len(counts_V) == size,
            "token counts",
            len(counts_V),
            f"must have one entry for each of the {size} tokens",
        )
        content = np.ascontiguousarray(counts_V, np.int64).tobytes()
        table = _balanced(content, self.config.num_routes, self.config.top_k)
        self.table_VK.copy_(torch.from_numpy(table))

    def experts(self, context: RoutingContext) -> Tensor:
        ids_T, config, choice = context.token_ids_T, self.config, self.choice
        assert ids_T is not None
        if self.table_VK is not None:
            return self.table_VK[ids_T]
        if choice.function == "modulo":
            return count_off(digits(ids_T, config.num_routes, config.top_k), config.num_routes)
        return count_off(universal_hashes(ids_T, choice.seed, config.top_k), config.num_routes)


class RandomRouter(FixedRouter):
    """Router with random experts: fixed per token id, or redrawn each step per position and token id."""

    step: Tensor | None

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert isinstance(config.choice, RandomChoice)
        self.choice = config.choice
        anew = self.choice.per == "step"
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if anew else None)

    def experts(self, context: RoutingContext) -> Tensor:
        ids_T, places_T = context.token_ids_T, context.positions_T
        assert ids_T is not None
        parts = [torch.full_like(ids_T, self.choice.seed), ids_T]
        if self.step is not None:
            assert places_T is not None
            # The batch row is left out, so a text has the same experts in any batch and on any rank.
            parts += [places_T, self.step if self.training else torch.zeros_like(self.step)]
        return count_off(draws(self.config.top_k, parts), self.config.num_routes)

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Advance the step that the draws depend on."""
        if self.step is not None:
            self.step += 1


class RoundRobinRouter(FixedRouter):
    """Router that takes experts in turn by position in the sequence."""

    needs = "positions"

    def experts(self, context: RoutingContext) -> Tensor:
        places_T, top_k = context.positions_T, self.config.top_k
        assert places_T is not None
        slots_K = torch.arange(top_k, device=places_T.device)
        return (places_T[:, None] * top_k + slots_K) % self.config.num_routes


@lru_cache(maxsize=4)
def _balanced(counts: bytes, num_experts: int, top_k: int) -> np.ndarray:
    """The table of function = 'balanced', cached because all layers share it."""
    return balanced_table(np.frombuffer(counts, np.int64), num_experts, top_k)
