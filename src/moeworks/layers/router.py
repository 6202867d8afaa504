"""The router of a MoE layer: scores experts for each token, in float32 whatever the model's dtype."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeworks.config.balance import BalanceConfig
from moeworks.config.router import RouterConfig
from moeworks.errors import ConfigError
from moeworks.layers.init import init_matrix_
from moeworks.ops.choices.quantile import balancing_prices, bias_towards_prices
from moeworks.ops.losses import updated_expert_bias
from moeworks.ops.pools import counts_by_type, pool_table, reachable
from moeworks.ops.routing import Routing, RoutingContext
from moeworks.ops.scoring import Scores, choose_top_k, routing_weights, score_logits

Statistics = dict[str, Tensor]
"""What one Routing adds to the sums of its optimizer step, by name."""


class ExactBuffers(nn.Module):
    """A module whose floating-point buffers never fall below float32.

    In bfloat16 a few hundred distinct biases become a handful, and most tokens change experts.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move and cast like any module, but for the buffers' precision."""
        exact = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        module = super()._apply(fn, recurse)
        for name, before in exact.items():
            now = self._buffers[name]
            if now is not None and now.dtype.itemsize < 4:
                self._buffers[name] = before.to(now.device)
        return module


class Stateful(ExactBuffers):
    """State that moves once per optimizer step, never in a forward pass.

    Activation checkpointing runs a forward pass twice, and evaluation adds more, so counting there would be
    wrong. The update uses functions of the Routing records, summed over micro-batches and ranks.
    """

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Contribution of `routing` to the step's sums: tensors that may be added up over micro-batches."""
        return {}

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Update the state from the step's sums; called once per optimizer step, without gradients."""


class RouterModule(Stateful):
    """What MoE asks of a router: forward(x [T, D], context) -> Routing, and the methods here."""

    wants_token_losses = False
    """Whether `statistics` and `losses` read routing.token_losses_T: each token's cross-entropy."""
    wants_token_counts = False
    """Whether set_token_counts_ does anything."""

    def set_token_counts_(self, counts_V: np.ndarray) -> None:
        """Take the count of each token in the training text; called before a run's first step."""

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """Losses that only this router has, beside balance losses: sums over the valid tokens, by name."""
        return {}

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Coefficient of each of `losses`, applied per token of the optimizer step and per layer."""
        return {}

    def looks_ahead(self) -> str | None:
        """Why, in the present mode, a token's experts depend on later tokens; None where they do not."""
        return None

    def replayed(self, routing: Routing, expert_ids_TK: Tensor, *, variable: bool) -> Routing:
        """`routing`, which this router just made, with `expert_ids_TK` in place of its choice, reweighted.

        Raises ConfigError, as this default does, in a router that cannot weigh experts it did not choose.
        """
        raise ConfigError(
            f"replay.weights = 'recomputed': {type(self).__name__} cannot weigh experts that it did not"
            " choose; derive the router from moeworks.layers.router.RouterModule and define replayed(), or"
            " set replay.weights to 'recorded'"
        )


class Choice(Stateful):
    """Way to choose experts from Scores; this base class is top-k."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing of the T tokens that `scores` describes."""
        return choose_top_k(scores, context)


class Router(RouterModule):
    """Linear scores over the routes (routed, identity and zero experts), and a choice."""

    expert_bias: Tensor | None
    noise_step: Tensor | None
    pools_PE: Tensor | None

    def __init__(self, config: RouterConfig, d_model: int, choice: Choice | None = None) -> None:
        super().__init__()
        self.config = config
        routes = config.num_routes
        self.weight = nn.Parameter(torch.empty(routes, d_model))
        self.bias = nn.Parameter(torch.empty(routes)) if config.router_bias else None
        self.noise_weight = nn.Parameter(torch.empty(routes, d_model)) if config.noisy_top_k else None
        # A buffer, not a parameter: no gradient moves it, only balance updates do.
        bias = torch.zeros(routes, dtype=torch.float32) if config.selection_bias else None
        self.register_buffer("expert_bias", bias)
        step = None if config.noise_steps is None else torch.zeros((), dtype=torch.int64)
        self.register_buffer("noise_step", step)
        # Not saved in checkpoints: it follows from the config.
        self.pools = config.pool_experts
        pools_PE = pool_table(self.pools, routes) if self.pools else None
        self.register_buffer("pools_PE", pools_PE, persistent=False)
        self.choice = choice or Choice(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as nn.Linear's; biases and the noise start at 0 (Shazeer et al. 2017, appendix A)."""
        init_matrix_(self.weight)
        for zero in (self.bias, self.noise_weight, self.expert_bias, self.noise_step):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens; see Routing. Jitter and noise act in training only.

        Raises ConfigError for experts in pools when the context has no token types, or types without a pool.
        """
        context = context or RoutingContext()
        with torch.autocast(x_TD.device.type, enabled=False):
            return self.choice.choose(self.scores(at_least_float32(x_TD), context), context)

    def scores(self, x_TD: Tensor, context: RoutingContext) -> Scores:
        """The scores of tokens in float32 or float64."""
        config = self.config
        scale = self._noise_scale() if self.training and config.noisy else 0.0
        noise_std_TE = None
        if self.training and config.input_jitter:
            spread = config.input_jitter * scale
            x_TD = x_TD * (1 + spread * torch.empty_like(x_TD).uniform_(-1, 1))
        if self.training and self.noise_weight is not None:
            noise_std_TE = F.softplus(self._linear(x_TD, self.noise_weight)) * scale
        return score_logits(
            self._linear(x_TD, self.weight, self.bias),
            config,
            expert_bias_E=self.expert_bias,
            noise_std_TE=noise_std_TE,
            gumbel_scale=config.gumbel_noise * scale if config.gumbel_noise else 0.0,
            pools=self.pools,
            reachable_TE=None if self.pools_PE is None else reachable(self.pools_PE, context.token_types_T),
        )

    def looks_ahead(self) -> str | None:
        """Why the present mode's choice depends on later tokens; None where it does not."""
        return self.config.choice.looks_ahead(training=self.training)

    def replayed(self, routing: Routing, expert_ids_TK: Tensor, *, variable: bool) -> Routing:
        """`routing` with these experts, weighted by its scores, noise included, like its own choice."""
        weights_TK = routing_weights(
            routing.router_logits_TE, routing.router_probs_TE, expert_ids_TK, self.config, variable=variable
        )
        return replace(routing, expert_ids_TK=expert_ids_TK, routing_weights_TK=weights_TK, variable=variable)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Statistics of the choice, with the counts that the expert_bias update needs."""
        sums = self.choice.statistics(routing, balance)
        if self.expert_bias is None or balance.bias_rule == "none":
            return sums
        if balance.bias_rule == "quantile":
            ranking_TE = ranking_of(routing, self.config)
            prices_E = balancing_prices(ranking_TE, -self.expert_bias, self.config.top_k, routing.valid_T)
            return sums | {
                "prices": prices_E.double() * routing.num_tokens,
                "price_tokens": routing.num_tokens,
            }
        if routing.pools:
            return sums | {"tokens_per_expert": counts_by_type(routing, routing.expert_ids_TK)}
        return sums | {"tokens_per_expert": routing.tokens_per_expert()}

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Update expert_bias and the state of the choice, and advance the schedule of the noise."""
        self.choice.update(sums, balance)
        if self.expert_bias is not None and balance.bias_rule != "none":
            self.expert_bias.copy_(self._moved_bias(self.expert_bias, sums, balance))
        if self.noise_step is not None:
            self.noise_step += 1

    def _moved_bias(self, bias_E: Tensor, sums: Statistics, balance: BalanceConfig) -> Tensor:
        if self.pools:
            return updated_expert_bias(bias_E, sums["tokens_per_expert"], balance, self.pools)
        if balance.bias_rule != "quantile":
            return updated_expert_bias(bias_E, sums["tokens_per_expert"], balance)
        prices_E = sums["prices"] / sums["price_tokens"].clamp(min=1)
        return bias_towards_prices(bias_E, prices_E, balance)

    def _noise_scale(self) -> Tensor | float:
        """Factor of all noise, which falls from 1 to 0 over noise_steps."""
        if self.noise_step is None or self.config.noise_steps is None:
            return 1.0
        return (1 - self.noise_step / self.config.noise_steps).clamp(min=0.0)

    @staticmethod
    def _linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x_TD, weight.to(x_TD.dtype), None if bias is None else bias.to(x_TD.dtype))


def expert_bias_of(router: RouterModule) -> Tensor | None:
    """float32 [E], the bias of loss-free balancing; None where the router has none."""
    return router.expert_bias if isinstance(router, Router) else None


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in the dtype that routers compute in: float32, or float64 in a float64 model."""
    return x if x.dtype == torch.float64 else x.float()


def ranking_of(routing: Routing, config: RouterConfig) -> Tensor:
    """[T, E]: the values that ranked the experts of a Routing, without Gumbel noise and bias."""
    before = config.score_order == "before_top_k"
    return (routing.router_probs_TE if before else routing.router_logits_TE).detach()
