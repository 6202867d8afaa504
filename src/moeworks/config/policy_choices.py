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


MOST_BUCKETS = 4096
"""What `buckets` are when neither they nor a smaller vocabulary are given."""


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
    """Of the bonus of rarely tried experts, in nats: about how much the loss of a bucket's tokens varies."""
    discount: float = 0.99
    """What counts and rewards are multiplied by in each optimizer step in which the bucket occurs: experts
    change while they learn (D-UCB, Garivier and Moulines 2011). 1 forgets nothing."""
    baseline_decay: float = 0.9
    """The same for the running mean that rewards are measured from; 0: the mean of the step itself, from
    which a bucket with a single token in it learns nothing."""
    rounds: int = 8
    """Rounds of UCB in one step: a round's experts count as tried for the rounds after it, and tokens share
    out the rounds' experts. With 1, all tokens of a bucket have the same experts in a step."""
    buckets: int | None = None
    """Bandits of a layer; None: one for each token of a vocabulary of at most 4096, else 4096. With fewer
    than there are tokens, a hash says which share one."""
    vocab_size: int | None = None
    """Tokens that there are; None takes the model's, and outside of a model the hash."""
    seed: int = 0
    """Of that hash."""

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
