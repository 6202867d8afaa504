"""The choices of the linear router beside top-k; the arithmetic is in ops/choices."""

import torch
from torch import Tensor

from moeworks.config.balance import BalanceConfig
from moeworks.config.choices import (
    AssignmentChoice,
    ExpertChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)
from moeworks.config.router import RouterConfig
from moeworks.layers.router import Choice, Statistics, ranking_of
from moeworks.ops.choices.assignment import assign
from moeworks.ops.choices.expert_choice import choose_tokens, cutoffs, dense_groups
from moeworks.ops.choices.numbers import choose_above, choose_top_p
from moeworks.ops.choices.packing import pack_slots
from moeworks.ops.choices.sinkhorn import sinkhorn_plan
from moeworks.ops.pools import Pools, in_each_pool, within_pools
from moeworks.ops.routing import Routing, RoutingContext
from moeworks.ops.scoring import Scores, choose_top_k, routing_of, select_experts


class ExpertChoiceRouting(Choice):
    """Choice of tokens by experts; causal variants compare each score with a cutoff learnt per expert.

    The cutoff is the running mean of the score of the last token that the expert would take from a batch.
    """

    cutoffs: Tensor
    updates: Tensor

    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        assert isinstance(config.choice, ExpertChoice)
        self.options = config.choice
        self.share = self.options.capacity_factor * config.top_k / config.num_routes
        self.pools = config.pool_experts
        if self.options.causal != "no":
            # With pools, one cutoff per type: an expert may be in the pools of several types.
            types = (len(self.pools),) if self.pools else ()
            self.register_buffer("cutoffs", torch.zeros(*types, config.num_routes, dtype=torch.float32))
            self.register_buffer("updates", torch.zeros(types, dtype=torch.int64))

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing by cutoffs in evaluation, and in training if causal = 'always'; otherwise by token rank."""
        if self.options.causal == "always" or (not self.training and self.options.causal == "evaluation"):
            chosen_TE = self._above(scores, context)
        else:
            chosen_TE = self._best_tokens(scores, context)
        ids_TK = pack_slots(chosen_TE, scores.ranking_TE, self.config.slots)
        return routing_of(scores, ids_TK, context, variable=True)

    def _best_tokens(self, scores: Scores, context: RoutingContext) -> Tensor:
        groups_T = None
        if self.options.scope == "sequence" and context.sequence_ids_T is not None:
            groups_T = dense_groups(context.sequence_ids_T)
        ranking_TE, valid_T = scores.ranking_TE, context.valid_T
        if not self.pools:
            return choose_tokens(ranking_TE, self.share, valid_T=valid_T, groups_T=groups_T)

        def choose(own_TE: Tensor, rows: Tensor, number: int) -> Tensor:
            groups = None if groups_T is None else dense_groups(groups_T[rows])
            valid = None if valid_T is None else valid_T[rows]
            return choose_tokens(own_TE, self._share_of(number), valid_T=valid, groups_T=groups)

        assert context.token_types_T is not None
        none_TE = torch.zeros_like(ranking_TE, dtype=torch.bool)
        return in_each_pool(choose, ranking_TE, context.token_types_T, self.pools, none_TE)

    def _share_of(self, number: int) -> float:
        """The tokens of one type that each expert of the type's pool takes."""
        return min(self.options.capacity_factor * self.config.top_k / len(self.pools[number]), 1.0)

    def _above(self, scores: Scores, context: RoutingContext) -> Tensor:
        """bool [T, E]: scores that reach the cutoffs; before the first update, each token's best experts."""
        ranking_TE = scores.ranking_TE
        best_TE = torch.zeros_like(ranking_TE, dtype=torch.bool)
        best_TE.scatter_(1, select_experts(ranking_TE, self.config), True)
        cutoffs, updates = self.cutoffs.to(ranking_TE.dtype), self.updates
        if self.pools:
            assert context.token_types_T is not None
            cutoffs, updates = cutoffs[context.token_types_T], updates[context.token_types_T][:, None]
        return torch.where(updates > 0, ranking_TE >= cutoffs, best_TE)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """This batch's cutoffs, weighted by its number of tokens; with pools, one row per type."""
        if self.options.causal == "no":
            return {}
        if self.pools:
            return self._statistics_by_type(routing)
        tokens = routing.num_tokens
        found_E = cutoffs(ranking_of(routing, self.config), self.share, routing.valid_T)
        return {"cutoffs": found_E.double() * tokens, "tokens": tokens}

    def _statistics_by_type(self, routing: Routing) -> Statistics:
        ranking_TE = ranking_of(routing, self.config)
        found_PE = torch.zeros_like(self.cutoffs, dtype=torch.float64)
        tokens = []
        for number, (count, own) in enumerate(within_pools(routing)):
            columns = list(self.pools[number])
            found_E = cutoffs(ranking_TE[:, columns], self._share_of(number), own.valid_T)
            found_PE[number, columns] = found_E.double() * count
            tokens.append(count)
        return {"cutoffs": found_PE, "tokens": torch.stack(tokens)}

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Update the cutoffs: a plain mean over the first steps, then a running mean with `momentum`."""
        if self.options.causal == "no":
            return
        tokens = sums["tokens"]
        found = (sums["cutoffs"] / tokens.clamp(min=1).unsqueeze(-1)).to(self.cutoffs.dtype)
        rate = torch.clamp(1 / (self.updates + 1), min=1 - self.options.momentum)
        if self.pools:
            # A type without tokens in this step keeps its cutoffs.
            rate = rate * (tokens > 0)
        self.cutoffs += rate.unsqueeze(-1) * (found - self.cutoffs)
        self.updates += (tokens > 0) if self.pools else 1


class SinkhornRouting(Choice):
    """Choice by the best experts of a Sinkhorn plan in training, and by the best scores in evaluation."""

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing of the T tokens; weights come from the scores in training and in evaluation (S-BASE)."""
        options = self.config.choice
        assert isinstance(options, SinkhornChoice)
        if not self.training:
            return choose_top_k(scores, context)
        logits_TE = scores.logits_TE / options.temperature
        plan_TE = self._plan(logits_TE, options.iterations, context, scores.pools)
        return routing_of(scores, select_experts(plan_TE, self.config), context)

    @staticmethod
    def _plan(logits_TE: Tensor, iterations: int, context: RoutingContext, pools: Pools) -> Tensor:
        """[T, E]: the Sinkhorn plan; with pools, a separate plan for each type's tokens and pool."""
        valid_T, types_T = context.valid_T, context.token_types_T
        if not pools:
            return sinkhorn_plan(logits_TE, iterations, valid_T)
        assert types_T is not None

        def plan(own_TE: Tensor, rows: Tensor, number: int) -> Tensor:
            return sinkhorn_plan(own_TE, iterations, None if valid_T is None else valid_T[rows])

        nothing_TE = torch.full_like(logits_TE.detach(), -torch.inf)
        return in_each_pool(plan, logits_TE, types_T, pools, nothing_TE)


class AssignmentRouting(Choice):
    """Choice by linear assignment under equal load in training, and by the best scores in evaluation."""

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing of the T tokens; weights come from the scores in both modes (BASE: the logit's sigmoid)."""
        assert isinstance(self.config.choice, AssignmentChoice)
        if not self.training:
            return choose_top_k(scores, context)
        chosen_TE = self._assigned(scores.logits_TE, context, scores.pools)
        if context.valid_T is not None:
            # Padding reaches no expert; its slots hold its best experts, so that none is empty.
            greedy_TE = torch.zeros_like(chosen_TE)
            greedy_TE.scatter_(1, select_experts(scores.ranking_TE, self.config), True)
            chosen_TE = torch.where(context.valid_T[:, None], chosen_TE, greedy_TE)
        ids_TK = pack_slots(chosen_TE, scores.ranking_TE, self.config.top_k)
        return routing_of(scores, ids_TK, context)

    def _assigned(self, logits_TE: Tensor, context: RoutingContext, pools: Pools) -> Tensor:
        """bool [T, E]: the assignment; with pools, a separate one for each type's tokens and pool."""
        top_k, valid_T, types_T = self.config.top_k, context.valid_T, context.token_types_T
        if not pools:
            return assign(logits_TE, top_k, valid_T)
        assert types_T is not None

        def share_out(own_TE: Tensor, rows: Tensor, number: int) -> Tensor:
            return assign(own_TE, top_k, None if valid_T is None else valid_T[rows])

        nothing_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        return in_each_pool(share_out, logits_TE, types_T, pools, nothing_TE)


class TopPRouting(Choice):
    """Choice of the fewest experts whose probabilities together reach p."""

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing of the T tokens to at least one and at most top_k experts."""
        options = self.config.choice
        assert isinstance(options, TopPChoice)
        ids_TK = choose_top_p(scores.ranking_TE, options.p, self.config.top_k)
        return routing_of(scores, ids_TK, context, variable=True)


class ThresholdRouting(Choice):
    """Choice of all experts that reach a threshold, which moves towards a target mean number of experts."""

    threshold: Tensor

    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        assert isinstance(config.choice, ThresholdChoice)
        self.options = config.choice
        if self.options.mean_experts is not None:
            self.register_buffer("threshold", torch.tensor(self.options.threshold, dtype=torch.float32))

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """Routing of the T tokens to at least min_experts and at most top_k experts."""
        learnt = self.options.mean_experts is not None
        threshold = self.threshold if learnt else self.options.threshold
        ids_TK = choose_above(scores.ranking_TE, threshold, self.options.min_experts, self.config.top_k)
        return routing_of(scores, ids_TK, context, variable=True)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Number of assignments, and of the tokens that made them."""
        if self.options.mean_experts is None:
            return {}
        return {"assignments": routing.num_assignments(), "tokens": routing.num_tokens}

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Raise the threshold when tokens took more experts than the target, lower it when fewer."""
        target = self.options.mean_experts
        if target is None:
            return
        mean = sums["assignments"] / sums["tokens"].clamp(min=1)
        # A larger surplus is clipped: the step would overshoot.
        excess = (mean / target - 1).clamp(max=1.0)
        self.threshold *= torch.exp(self.options.rate * excess)


LINEAR_CHOICES: dict[str, type[Choice]] = {
    "top_k": Choice,
    "expert_choice": ExpertChoiceRouting,
    "sinkhorn": SinkhornRouting,
    "assignment": AssignmentRouting,
    "top_p": TopPRouting,
    "threshold": ThresholdRouting,
}
"""Modules of the linear router's choices, by kind."""
