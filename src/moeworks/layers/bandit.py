"""A router that is a bandit: experts by upper confidence bounds on the loss of the tokens that they had."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.config.policy_choices import BanditChoice
from moeworks.config.router import RouterConfig
from moeworks.errors import present
from moeworks.layers.fixed_routers import FixedRouter
from moeworks.layers.router import Statistics
from moeworks.ops.bandit import (
    BanditState,
    buckets_of,
    count_plays,
    draw_arms,
    greedy_arms,
    learn,
    plan_rounds,
)
from moeworks.ops.routing import Routing, RoutingContext

_STATE = tuple(f.name for f in fields(BanditState))


class BanditRouter(FixedRouter):
    """A router with one bandit per bucket of token ids, whose arms are the experts; it has no parameters.

    Every routing weight is routing_scale / top_k. Each expert of a token receives minus the token's
    cross-entropy as its reward. The state changes once per optimizer step. In evaluation a token goes to the
    experts with the best mean rewards.
    """

    wants_token_losses = True
    salt: Tensor
    step: Tensor

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert isinstance(config.choice, BanditChoice)
        self.choice = config.choice
        self.buckets = buckets = present(
            self.choice.buckets,
            "router.choice.buckets",
            "must be given outside of a model, where no vocabulary size is known to take as its default",
        )
        for name in _STATE:
            shape = (buckets, config.num_routes) if name.endswith("_UE") else (buckets,)
            self.register_buffer(name.rsplit("_", 1)[0], torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set counts and rewards to 0 and draw a new salt for this layer."""
        for buffer in self.buffers():
            buffer.zero_()
        self.salt.random_(2**31)

    @property
    def state(self) -> BanditState:
        """The router's statistics, which are buffers."""
        return BanditState(**{name: getattr(self, name.rsplit("_", 1)[0]) for name in _STATE})

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens by their ids, and in training also by their positions."""
        routing = super().forward(x_TD, context)
        assert context is not None and context.token_ids_T is not None
        return replace(routing, buckets_T=self._buckets(context.token_ids_T))

    def experts(self, context: RoutingContext) -> Tensor:
        """int64 [T, K]: drawn from the step's rounds in training; those of best mean reward in evaluation."""
        ids_T, places_T, choice = context.token_ids_T, context.positions_T, self.choice
        assert ids_T is not None
        buckets_T, top_k = self._buckets(ids_T), self.config.top_k
        if not self.training:
            return greedy_arms(self.state, buckets_T, top_k)
        places_T = present(
            places_T,
            "positions",
            "a bandit router needs them in training: call the layer as moe(x, positions=...)",
        )
        plan_UrK = plan_rounds(self.state, rounds=choice.rounds, top_k=top_k, exploration=choice.exploration)
        # The salt differs per layer: with equal draws everywhere, no layer could tell whose experts helped.
        parts = [self.salt, self.step, ids_T, places_T]
        return draw_arms(plan_UrK, self.config.num_routes, buckets_T, parts)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Plays and rewards per bucket and expert; empty for a Routing without token losses."""
        if routing.token_losses_T is None:
            return {}
        assert routing.buckets_T is not None
        taken_UE, gained_UE = count_plays(
            routing.buckets_T,
            routing.expert_ids_TK,
            -routing.token_losses_T,
            (self.buckets, self.config.num_routes),
            routing.valid_T,
        )
        return {"taken": taken_UE, "gained": gained_UE}

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Update the state from the step's plays and rewards, in float64."""
        self.step += 1
        if "taken" not in sums:
            return
        before = BanditState(**{name: getattr(self.state, name).double() for name in _STATE})
        choice = self.choice
        after = learn(
            before,
            sums["taken"],
            sums["gained"],
            top_k=self.config.top_k,
            discount=choice.discount,
            decay=choice.baseline_decay,
        )
        for name in _STATE:
            getattr(self.state, name).copy_(getattr(after, name))

    def _buckets(self, ids_T: Tensor) -> Tensor:
        choice = self.choice
        return buckets_of(ids_T, self.buckets, choice.vocab_size, choice.seed)
