"""A router that is a bandit: experts by upper confidence bounds on the loss of the tokens that they had."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.config.policy_choices import BanditChoice
from moeworks.config.router import RouterConfig
from moeworks.errors import check
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
    """One bandit for each bucket of token ids, the experts its arms; no parameters, weights as fixed ones.

    A token's reward is minus its cross-entropy, for each of its experts. The state moves once per optimizer
    step. In evaluation experts are those of the best means.
    """

    wants_token_losses = True
    salt: Tensor
    step: Tensor

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert isinstance(config.choice, BanditChoice)
        self.choice = config.choice
        buckets = self.choice.buckets
        check(
            buckets is not None,
            "router.choice.buckets",
            buckets,
            "must be given outside of a model: there is no vocabulary whose size it could be",
        )
        assert buckets is not None
        self.buckets = buckets
        for name in _STATE:
            shape = (buckets, config.num_routes) if name.endswith("_UE") else (buckets,)
            self.register_buffer(name.rsplit("_", 1)[0], torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Nothing learnt, and a salt of its own."""
        for buffer in self.buffers():
            buffer.zero_()
        self.salt.random_(2**31)

    @property
    def state(self) -> BanditState:
        """The router's statistics, which are buffers."""
        return BanditState(**{name: getattr(self, name.rsplit("_", 1)[0]) for name in _STATE})

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens by their ids, in training also by their places."""
        routing = super().forward(x_TD, context)
        assert context is not None and context.token_ids_T is not None
        return replace(routing, buckets_T=self._buckets(context.token_ids_T))

    def experts(self, context: RoutingContext) -> Tensor:
        """Drawn from the rounds of this step in training, in evaluation those of the best means."""
        ids_T, places_T, choice = context.token_ids_T, context.positions_T, self.choice
        assert ids_T is not None
        buckets_T, top_k = self._buckets(ids_T), self.config.top_k
        if not self.training:
            return greedy_arms(self.state, buckets_T, top_k)
        check(places_T is not None, "positions", None, "must be given to a bandit in training")
        assert places_T is not None
        plan_UrK = plan_rounds(self.state, rounds=choice.rounds, top_k=top_k, exploration=choice.exploration)
        # The salt differs from layer to layer, or no layer could tell its experts from those of another.
        parts = [self.salt, self.step, ids_T, places_T]
        return draw_arms(plan_UrK, self.config.num_routes, buckets_T, parts)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Nothing for a record without rewards."""
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
        """Learn from the step's plays, in float64."""
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
