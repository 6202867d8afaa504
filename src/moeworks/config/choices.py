"""Ways to choose experts by their scores: one small config for each, named by its `kind`.

A choice is a field of RouterConfig. Each says how many slots a token has, whether some of them may stay
empty, whether it looks at later tokens, and what it cannot be combined with. docs/routers.md has the table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice, check_slots
from moeworks.config.fixed_choices import HashChoice, RandomChoice, RoundRobinChoice
from moeworks.config.policy_choices import BanditChoice, PolicyGradientChoice
from moeworks.config.soft_choice import SoftChoice
from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig


@dataclass(frozen=True, kw_only=True)
class TopKChoice(Choice):
    """Every token takes its top_k best experts (token choice)."""

    pooled: ClassVar[bool] = True

    kind: Literal["top_k"] = "top_k"
    """Choice of experts by tokens."""


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Choice):
    """Every expert takes its best tokens, of which a token may have any number (Zhou et al. 2022).

    Loads are exactly equal in training; experts of a token then depend on the tokens after it. `top_k` is the
    mean number of experts of a token.
    """

    variable: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

    kind: Literal["expert_choice"] = "expert_choice"
    """Choice of tokens by experts."""
    capacity_factor: float = 1.0
    """Factor of the tokens of an expert, ceil(factor * tokens * top_k / experts); above 1, tokens have more
    than top_k experts on average."""
    scope: Literal["batch", "sequence"] = "batch"
    """Tokens that an expert chooses from: those of a micro-batch, where texts compete with each other, or of
    each sequence on its own, where an expert takes at least one token of every packed document."""
    causal: Literal["evaluation", "always", "no"] = "evaluation"
    """When a token instead takes all experts whose score for it exceeds a cutoff that each expert learns in
    training: in evaluation, always, or never ("no"), with which a decoder cannot be evaluated."""
    momentum: float = 0.99
    """Share of a cutoff that is kept in each optimizer step."""
    max_experts: int | None = None
    """Slots of a token, which keeps its best experts; None is as many as there are experts."""

    def slots(self, router: "RouterConfig") -> int:
        return self.max_experts or router.num_routes

    def looks_ahead(self, *, training: bool) -> str | None:
        if self.causal == "always" or (self.causal == "evaluation" and not training):
            return None
        why = "experts choose among all tokens, so that a token's experts depend on those after it"
        return f"{why} (with causal = 'evaluation' or 'always' they do not, or only in training)"

    def check_router(self, router: "RouterConfig") -> None:
        factor = self.capacity_factor
        most = router.num_routes / router.top_k
        check(
            0 < factor <= most,
            "router.choice.capacity_factor",
            factor,
            f"must be positive, and at most experts / top_k = {most:g}: an expert takes a token once",
        )
        check(0 <= self.momentum < 1, "router.choice.momentum", self.momentum, "must lie in [0, 1)")
        check(
            self.causal == "no" or self.scope == "batch",
            "router.choice.scope",
            self.scope,
            "needs causal = 'no': a cutoff is a quantile of all tokens",
        )
        check_slots(self.max_experts, router)
        check_plain(router, self.kind)


@dataclass(frozen=True, kw_only=True)
class SinkhornChoice(Choice):
    """In training the best experts of a nearly balanced plan (S-BASE, Clark et al. 2022)."""

    pooled: ClassVar[bool] = True

    kind: Literal["sinkhorn"] = "sinkhorn"
    """Sinkhorn plan in training; greedy top-k in evaluation."""
    iterations: int = 20
    """Rounds of scaling columns and rows."""
    temperature: float = 1.0
    """Divisor of the logits: a lower one comes closer to the linear assignment, in more rounds."""

    def looks_ahead(self, *, training: bool) -> str | None:
        return _global(training)

    def check_router(self, router: "RouterConfig") -> None:
        check(self.iterations >= 1, "router.choice.iterations", self.iterations, "must be at least 1")
        check(self.temperature > 0, "router.choice.temperature", self.temperature, "must be positive")
        check_plain(router, self.kind)


@dataclass(frozen=True, kw_only=True)
class AssignmentChoice(Choice):
    """In training the greatest sum of logits under equal load (BASE, Lewis et al. 2021)."""

    pooled: ClassVar[bool] = True

    kind: Literal["assignment"] = "assignment"
    """Exact linear assignment in training; greedy top-k in evaluation."""

    def looks_ahead(self, *, training: bool) -> str | None:
        return _global(training)

    def check_router(self, router: "RouterConfig") -> None:
        check_plain(router, self.kind)


@dataclass(frozen=True, kw_only=True)
class TopPChoice(Choice):
    """The fewest best experts whose probabilities sum to p (Huang et al. 2024): at least 1, at most top_k."""

    variable: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

    kind: Literal["top_p"] = "top_p"
    """As many experts as reach a probability (top-p)."""
    p: float = 0.5
    """Probability that the experts of a token reach together; sigmoid scores are divided by their sum
    first."""

    def check_router(self, router: "RouterConfig") -> None:
        check(0 < self.p <= 1, "router.choice.p", self.p, "must lie in (0, 1]")
        check_plain(router, self.kind, scores=True)


@dataclass(frozen=True, kw_only=True)
class ThresholdChoice(Choice):
    """All experts whose score reaches a threshold: at least min_experts, at most top_k."""

    variable: ClassVar[bool] = True
    pooled: ClassVar[bool] = True

    kind: Literal["threshold"] = "threshold"
    """Every expert whose score is high enough."""
    threshold: float = 0.1
    """Least score of a chosen expert; with mean_experts, where the threshold starts."""
    mean_experts: float | None = None
    """Mean number of experts of a token that the threshold is moved towards in every optimizer step; None
    keeps the threshold."""
    rate: float = 0.05
    """Rate of that movement: the threshold is multiplied by exp(rate * (mean / mean_experts - 1))."""
    min_experts: int = 1
    """Number of best experts that are taken whatever their score is."""

    def check_router(self, router: "RouterConfig") -> None:
        check(self.threshold > 0, "router.choice.threshold", self.threshold, "must be positive")
        check(self.rate > 0, "router.choice.rate", self.rate, "must be positive")
        check(
            0 <= self.min_experts <= router.top_k,
            "router.choice.min_experts",
            self.min_experts,
            f"must lie between 0 and top_k = {router.top_k}",
        )
        mean = self.mean_experts
        check(
            mean is None or self.min_experts < mean < router.top_k,
            "router.choice.mean_experts",
            mean,
            f"must lie between min_experts = {self.min_experts} and top_k = {router.top_k}, or be None",
        )
        check_plain(router, self.kind, scores=True)


@dataclass(frozen=True, kw_only=True)
class CustomChoice(Choice):
    """A router of your own, registered under a name: see moeworks.layers.routers.register_router."""

    variable: ClassVar[bool] = True
    no_pools: ClassVar[str] = "a router of your own sees each token's type in context.token_types_T"

    kind: Literal["custom"] = "custom"
    """A router of your own."""
    name: str = ""
    """Name that the router was registered under."""
    max_experts: int | None = None
    """Slots of a token; None is top_k."""

    def slots(self, router: "RouterConfig") -> int:
        return self.max_experts or router.top_k

    def check_router(self, router: "RouterConfig") -> None:
        check_slots(self.max_experts, router)


ChoiceConfig = (
    TopKChoice
    | ExpertChoice
    | SinkhornChoice
    | AssignmentChoice
    | TopPChoice
    | ThresholdChoice
    | HashChoice
    | RandomChoice
    | RoundRobinChoice
    | PolicyGradientChoice
    | BanditChoice
    | SoftChoice
    | CustomChoice
)
"""Union of the configs of all ways to choose experts."""


def check_plain(router: "RouterConfig", kind: str, *, scores: bool = False) -> None:
    """Raise ConfigError for router options that only top-k supports: groups, a bias, sparsemixer.

    `scores`: the choice reads scores as amounts, which logits are not.
    """
    rule = f"must be {{}} with router.choice = {kind!r}: only top_k honours it"
    check(router.num_groups == 1, "router.num_groups", router.num_groups, rule.format(1))
    check(not router.selection_bias, "router.selection_bias", True, rule.format(False))
    check(router.score != "sparsemixer", "router.score", router.score, rule.format("another"))
    check(
        not scores or router.score_order == "before_top_k",
        "router.score_order",
        router.score_order,
        f"must be 'before_top_k' with router.choice = {kind!r}, which adds up or compares scores",
    )


def _global(training: bool) -> str | None:
    if not training:
        return None
    return "all tokens of a batch share out the experts, so that a token's experts depend on those after it"
