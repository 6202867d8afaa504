"""Routers that learn from the loss of the tokens that they routed: policy gradient, and a bandit."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice, check_untouched
from moeworks.config.fixed_choices import FixedChoice
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
    """Weight of -H(pi), which keeps the policy from settling before it has tried the experts."""
    reward_decay: float = 0.9
    """Share of the running mean of the reward that is kept in each optimizer step; the baseline adds x w to
    it."""

    def check_router(self, router: "RouterConfig") -> None:
        names = ("score", "selection_bias", "num_groups", "top_k_groups", "gumbel_noise")
        check_untouched(router, names, "experts are drawn from the softmax of all logits")

    def extra_parameters(self, d_model: int) -> int:
        """Number of weights of the baseline."""
        return d_model

    def __post_init__(self) -> None:
        for name in ("policy_coef", "baseline_coef", "entropy_coef"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"router.choice.{name}", value, "must be finite and not negative")
        decay = self.reward_decay
        check(0 <= decay < 1, "router.choice.reward_decay", decay, "must lie in [0, 1)")


MOST_BUCKETS = 4096
"""Default of `buckets` where the vocabulary is not smaller."""


@dataclass(frozen=True, kw_only=True)
class BanditChoice(FixedChoice):
    """Experts by upper confidence bounds on the loss of the tokens that they had, without a gradient.

    One bandit for each bucket of token ids. In training a token goes to the top_k experts with the greatest
    mean reward + exploration * sqrt(ln(1 + plays) / count) (UCB1, Auer et al. 2002), in evaluation to those
    with the greatest mean. The reward is minus the token's cross-entropy, above a running mean of its bucket.
    """

    rewarded: ClassVar[bool] = True

    kind: Literal["bandit"] = "bandit"
    """UCB on the loss of each token."""
    exploration: float = 1.0
    """Factor of the bonus of rarely tried experts, in nats: about as much as the loss of a bucket's tokens
    varies."""
    discount: float = 0.99
    """Factor of counts and rewards in each optimizer step in which the bucket occurs, because experts
    change while they learn (D-UCB, Garivier and Moulines 2011). 1 forgets nothing."""
    baseline_decay: float = 0.9
    """Factor of the running mean that rewards are measured from; 0 takes the mean of the step itself, from
    which a bucket with a single token learns nothing."""
    rounds: int = 8
    """Rounds of UCB in one step: the experts of a round count as tried in the rounds after it, and the tokens
    are spread over the rounds. With 1, all tokens of a bucket have the same experts in a step."""
    buckets: int | None = None
    """Bandits of a layer; None is one for each token of a vocabulary of at most 4096, else 4096. With fewer
    bandits than tokens, a hash decides which tokens share one."""
    vocab_size: int | None = None
    """Size of the vocabulary; None is that of the model, and outside of a model the hash is used."""
    seed: int = 0
    """Random seed of that hash."""

    def in_vocabulary(self, vocab_size: int) -> "BanditChoice":
        size = self.vocab_size or vocab_size
        return replace(self, vocab_size=size, buckets=self.buckets or min(size, MOST_BUCKETS))

    def __post_init__(self) -> None:
        bonus = self.exploration
        check(0 <= bonus < math.inf, "router.choice.exploration", bonus, "must be finite and not negative")
        check(0 < self.discount <= 1, "router.choice.discount", self.discount, "must lie in (0, 1]")
        decay = self.baseline_decay
        check(0 <= decay <= 1, "router.choice.baseline_decay", decay, "must lie in [0, 1]")
        check(self.rounds >= 1, "router.choice.rounds", self.rounds, "must be at least 1")
        for name in ("buckets", "vocab_size"):
            size = getattr(self, name)
            check(size is None or size >= 1, f"router.choice.{name}", size, "must be at least 1, or None")
        check(0 <= self.seed < 2**31, "router.choice.seed", self.seed, "must lie between 0 and 2**31 - 1")
