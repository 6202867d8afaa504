"""The router of a MoE layer: scores, groups, noise, and the choice of experts. Without torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from moeworks.config.choices import ChoiceConfig, TopKChoice
from moeworks.config.pools import check_pools, parse_pools
from moeworks.errors import check

Score = Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"]


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """The choice of experts for a token. The router computes in float32 whatever the dtype of the model."""

    num_experts: int = 8
    """Routed experts that have weights (E)."""
    top_k: int = 2
    """Experts per token (K)."""
    num_identity_experts: int = 0
    """Extra routes that return the token itself (zero-computation experts, LongCat-Flash section 2.1)."""
    num_zero_experts: int = 0
    """Extra routes that return nothing."""
    score: Score = "softmax"
    """Function from router_logits to router_probs."""
    score_order: Literal["before_top_k", "after_top_k"] = "before_top_k"
    """Order of scoring: all experts before the choice, or the chosen ones after it (softmax, sigmoid)."""
    renormalize: bool = True
    """Whether the chosen probabilities are divided by their sum."""
    renormalize_eps: float = 1e-20
    """Small number that is added to that sum, since sigmoid scores can underflow to 0."""
    routing_scale: float = 1.0
    """Factor of the routing weights (routed_scaling_factor of DeepSeek)."""
    weights_on: Literal["output", "input"] = "output"
    """Tensor that the routing weight multiplies: the output of the expert, or its input (Llama 4)."""
    router_bias: bool = False
    """Whether the logits of the router have a trained bias (gpt-oss)."""
    selection_bias: bool = False
    """Whether an expert_bias enters the choice of experts, and never their weights (loss-free balancing)."""
    num_groups: int = 1
    """Groups of experts for group-limited routing (DeepSeek-V2, V3); 1 switches it off."""
    top_k_groups: int = 1
    """Groups that a token may use."""
    group_score: Literal["max", "top2_sum"] = "top2_sum"
    """Score of a group: its best expert (DeepSeek-V2, without bias) or the sum of its two best (V3)."""
    pools: tuple[str, ...] = ()
    """Experts of each type of token, `0-3 4-7` or with names `text=0-3,6 image=4-7`: softmax and choice are
    over these alone. In a run the types are the documents' domains, * all others (MoMa, Lin et al. 2024)."""
    input_jitter: float = 0.0
    """Noise x in training: the input of the router is multiplied by U(1 - x, 1 + x) (Switch section 2.3)."""
    noisy_top_k: bool = False
    """Whether N(0, 1) * softplus(x W_noise) is added to the logits in training (Shazeer et al. 2017,
    section 2.1)."""
    gumbel_noise: float = 0.0
    """Factor of the Gumbel noise on the logits by which experts are chosen in training: 1 draws them without
    replacement from the softmax (Kool et al. 2019). Weights are those of the logits without noise."""
    noise_steps: int | None = None
    """Optimizer steps in which the noise of all kinds falls linearly to 0; None keeps it."""
    sparsemixer_eps: float = 0.01
    """sparsemixer: experts whose logit is relatively 2 * eps below the best one's leave the softmax."""
    choice: ChoiceConfig = field(default_factory=TopKChoice)
    """Way to choose experts by their scores; where their number varies, top_k is its mean or its maximum."""

    @property
    def slots(self) -> int:
        """Largest number of experts of a token."""
        return self.choice.slots(self)

    @property
    def pool_experts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the experts of each type of token, ascending; empty where every token may have every
        expert."""
        return tuple(pool.experts for pool in parse_pools(self.pools))

    @property
    def noisy(self) -> bool:
        """Whether training adds noise of any kind."""
        return self.noisy_top_k or self.input_jitter > 0 or self.gumbel_noise > 0

    @property
    def num_routes(self) -> int:
        """Choices that a token has: routed, identity and zero experts, in this order of ids."""
        return self.num_experts + self.num_identity_experts + self.num_zero_experts

    def __post_init__(self) -> None:
        check(self.num_experts >= 1, "router.num_experts", self.num_experts, "must be at least 1")
        for name in ("num_identity_experts", "num_zero_experts"):
            check(getattr(self, name) >= 0, f"router.{name}", getattr(self, name), "must not be negative")
        check(
            1 <= self.top_k <= self.num_routes,
            "router.top_k",
            self.top_k,
            f"must lie between 1 and the number of experts, {self.num_routes}",
        )
        check(
            self.score_order == "before_top_k" or self.score in ("softmax", "sigmoid"),
            "router.score_order",
            self.score_order,
            f"is for softmax and sigmoid, the score is {self.score}",
        )
        check(
            self.score != "sparsemixer"
            or (self.top_k == 2 and not self.selection_bias and not self.renormalize),
            "router.score",
            self.score,
            "needs top_k = 2, and neither selection_bias nor renormalize",
        )
        check(
            self.renormalize_eps >= 0,
            "router.renormalize_eps",
            self.renormalize_eps,
            "must not be negative",
        )
        scale = self.routing_scale
        check(0 < scale < math.inf, "router.routing_scale", scale, "must be positive and finite")
        check(0 <= self.input_jitter < 1, "router.input_jitter", self.input_jitter, "must lie in [0, 1)")
        self._check_noise()
        self._check_groups()
        self.choice.check_router(self)
        check_pools(self)

    def check_trainable(self) -> None:
        """Raise ConfigError where training would give the router no gradient."""
        check(
            self.top_k > 1
            or self.num_routes == 1
            or not self.choice.linear
            or self.choice.rewarded
            or not (self.renormalize or (self.score_order == "after_top_k" and self.score == "softmax")),
            "router.top_k",
            1,
            "with renormalize or score_order = 'after_top_k' every routing weight is 1 and the router gets no"
            " gradient; set router.renormalize to False and score_order to 'before_top_k'",
        )

    def _check_noise(self) -> None:
        gumbel, steps = self.gumbel_noise, self.noise_steps
        check(0 <= gumbel < math.inf, "router.gumbel_noise", gumbel, "must be finite and not negative")
        check(
            gumbel == 0 or not self.noisy_top_k,
            "router.gumbel_noise",
            gumbel,
            "cannot be combined with noisy_top_k; set one of the two kinds of noise on the logits",
        )
        check(
            steps is None or (steps >= 1 and self.noisy),
            "router.noise_steps",
            steps,
            "must be at least 1, and needs noisy_top_k, gumbel_noise or input_jitter; or None",
        )

    def _check_groups(self) -> None:
        groups, keep, routes = self.num_groups, self.top_k_groups, self.num_routes
        check(
            groups >= 1 and routes % groups == 0,
            "router.num_groups",
            groups,
            f"must divide the number of experts, {routes}",
        )
        check(
            1 <= keep <= groups, "router.top_k_groups", keep, f"must lie between 1 and num_groups = {groups}"
        )
        check(
            self.top_k <= keep * (routes // groups),
            "router.top_k",
            self.top_k,
            f"exceeds the {keep * (routes // groups)} experts in top_k_groups = {keep} groups",
        )
        check(
            groups == 1 or self.group_score == "max" or routes // groups >= 2,
            "router.group_score",
            self.group_score,
            "needs at least two experts in a group",
        )
