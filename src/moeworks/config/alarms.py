"""Thresholds of the alarms of a training run."""

import math
from dataclasses import dataclass

from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """Thresholds of the alarms; each 0 switches its own alarm off. They are judged at every line of metrics.

    Breadth is (N - top_k) / (E - top_k) for the effective number of experts N = exp H(load): 1 where all E
    experts do the same, 0 where all tokens take the same top_k.
    """

    enabled: bool = True
    """Whether alarms are computed at all."""
    patience: int = 3
    """Consecutive lines of metrics that must be bad to raise an alarm, and good to end it."""
    release: float = 0.8
    """Share of the threshold within which a figure must be for its alarm to end."""
    grace_steps: int = 100
    """Steps at the start that are not judged, because routers begin uneven and settle."""
    breadth: float = 0.1
    """Route collapse: a layer's breadth below this, e.g. under 5 of 32 experts at top_k 2."""
    dead_share: float = 0.1
    """Dying experts: more than this share of the experts of a layer have under 1 % of their fair share of
    tokens."""
    logit_size: float = 32.0
    """Exploding router logits: the mean over tokens of the largest logit is above this. bfloat16 numbers lie
    0.25 apart from there on, so rounding alone moves a weight by 13 %, and softmax has no gradient left."""
    bias_spread: float = 1.0
    """Bias runaway: the largest minus the smallest expert_bias is above this. Scores lie between 0 and 1:
    beyond 1 the bias alone decides between two experts, whatever the token is."""
    domain_breadth: float = 0.05
    """Domain starvation: the breadth of one domain's tokens below this in a layer that is not collapsed: few
    experts serve the whole domain, and what they have learned is all that it gets."""

    def __post_init__(self) -> None:
        check(self.patience >= 1, "alarms.patience", self.patience, "must be at least 1")
        check(0 < self.release <= 1, "alarms.release", self.release, "must lie in (0, 1]")
        check(self.grace_steps >= 0, "alarms.grace_steps", self.grace_steps, "must not be negative")
        for name in ("breadth", "dead_share", "domain_breadth"):
            value = getattr(self, name)
            check(0 <= value < 1, f"alarms.{name}", value, "must lie in [0, 1), 0 for off")
        for name in ("logit_size", "bias_spread"):
            value = getattr(self, name)
            check(
                0 <= value < math.inf, f"alarms.{name}", value, "must be finite and not negative, 0 for off"
            )
