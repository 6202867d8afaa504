"""A linear router that learns by REINFORCE from the loss of the tokens that it routed."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from moeworks.config.balance import BalanceConfig
from moeworks.config.policy_choices import PolicyGradientChoice
from moeworks.config.router import RouterConfig
from moeworks.errors import present
from moeworks.layers.router import Choice, Router, Statistics, at_least_float32
from moeworks.ops.policy import policy_losses
from moeworks.ops.routing import Routing, RoutingContext
from moeworks.ops.scoring import Scores, choose_top_k, gumbel_like, routing_of, stable_top_k


class SampledExperts(Choice):
    """Choice by draws without replacement from softmax(logits) in training, by top-k in evaluation."""

    def choose(self, scores: Scores, context: RoutingContext) -> Routing:
        """The experts of each of the T tokens, in the order in which they were drawn."""
        if not self.training:
            return choose_top_k(scores, context)
        # Top-k of logits plus Gumbel noise is a draw without replacement (Kool et al. 2019).
        drawn_TE = scores.logits_TE.detach() + gumbel_like(scores.logits_TE)
        return routing_of(scores, stable_top_k(drawn_TE, self.config.top_k), context)


class PolicyGradientRouter(Router):
    """The linear router as a policy (Clark et al. 2022, section 3), and a baseline for its rewards.

    The baseline is a running mean of the reward over optimizer steps plus x @ w with a trained w. The mean
    follows the improving model faster than a trained weight could. No gradient of the policy's loss reaches
    the residual stream through the baseline.
    """

    wants_token_losses = True
    mean_reward: Tensor
    reward_steps: Tensor

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__(config, d_model, SampledExperts(config))
        assert isinstance(config.choice, PolicyGradientChoice)
        self.policy = config.choice
        self.baseline_weight = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("mean_reward", torch.zeros((), dtype=torch.float32))
        self.register_buffer("reward_steps", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name in ("baseline_weight", "mean_reward", "reward_steps"):
            if hasattr(self, name):  # the base class calls this before they exist
                nn.init.zeros_(getattr(self, name))

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens; in training the Routing has a baseline."""
        routing = super().forward(x_TD, context)
        if not self.training:
            return routing
        with torch.autocast(x_TD.device.type, enabled=False):
            x = at_least_float32(x_TD.detach())
            own_T = x @ self.baseline_weight.to(x.dtype)
        return replace(routing, baseline_T=self.mean_reward.to(x.dtype) + own_T)

    @property
    def coefficients(self) -> Mapping[str, float]:
        policy = self.policy
        return {
            "policy": policy.policy_coef,
            "baseline": policy.baseline_coef,
            "entropy": policy.entropy_coef,
        }

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """The policy, baseline and entropy losses of moeworks.ops.policy, by name.

        Raises ConfigError for a record without rewards.
        """
        rule = (
            "a policy-gradient router learns from each token's loss: run the forward pass in training mode,"
            " then set replace(routing, token_losses_T=...)"
        )
        token_losses_T = present(routing.token_losses_T, "routing.token_losses_T", rule)
        baseline_T = present(routing.baseline_T, "routing.baseline_T", rule)
        return policy_losses(routing, token_losses_T, baseline_T)

    def statistics(self, routing: Routing, balance: BalanceConfig) -> Statistics:
        """Statistics of the linear router, with the sum and the number of rewards."""
        sums = super().statistics(routing, balance)
        if routing.token_losses_T is not None:
            # Token losses are 0 in padding, so the plain sum is right.
            sums["reward"] = -routing.token_losses_T.sum()
            sums["rewarded_tokens"] = routing.num_tokens
        return sums

    def update(self, sums: Statistics, balance: BalanceConfig) -> None:
        """Update the running mean of the reward; the first step sets it to that step's mean."""
        super().update(sums, balance)
        if "reward" not in sums:
            return
        now = (sums["reward"] / sums["rewarded_tokens"].clamp(min=1)).to(self.mean_reward.dtype)
        decay = torch.where(self.reward_steps == 0, 0.0, self.policy.reward_decay)
        self.mean_reward.copy_(decay * self.mean_reward + (1 - decay) * now)
        self.reward_steps += 1
