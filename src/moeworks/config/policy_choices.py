"""Routers that learn from the loss of the tokens that they routed: policy gradient, and a bandit."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice, check_untouched
from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig


@dataclass(frozen=True, kw_only=True)
class PolicyGradientChoice(Choice):
    """REINFORCE with a learned baseline on the language model's loss (RL-R, Clark et al. 2022, section 3).

    In training top_k experts are drawn without replacement from softmax(logits); in evaluation the best are
    taken. A token's reward is the log-probability of the token that follows it. The losses here are means
    over the tokens of the optimizer step and over layers, and no part of the reported cross-entropy.
    """

    rewarded: ClassVar[bool] = True
    no_pools: ClassVar[str] = "experts are drawn from the softmax of all logits"

    kind: Literal["policy_gradient"] = "policy_gradient"
    """REINFORCE on the loss of each token."""
    policy_coef: float = 1e-2
    """Weight of -(reward - baseline) log pi(experts), whose gradient is the score-function estimate."""
    baseline_coef: float = 1e-2
    """Weight of (reward - baseline)^2, which trains the baseline and nothing else."""
    entropy_coef: float = 1e-3
    """Weight of -H(pi): keeps the policy from settling before it has tried the experts."""
    reward_decay: float = 0.9
    """Per optimizer step, of the running mean of the reward, which the baseline adds x w to."""

    def check_router(self, router: "RouterConfig") -> None:
        names = ("score", "selection_bias", "num_groups", "top_k_groups", "gumbel_noise")
        check_untouched(router, names, "experts are drawn from the softmax of all logits")

    def extra_parameters(self, d_model: int) -> int:
        """The baseline's weights."""
        return d_model

    def __post_init__(self) -> None:
        for name in ("policy_coef", "baseline_coef", "entropy_coef"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"router.choice.{name}", value, "must be finite and not negative")
        decay = self.reward_decay
        check(0 <= decay < 1, "router.choice.reward_decay", decay, "must lie in [0, 1)")
