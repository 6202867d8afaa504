"""The base of the ways to choose experts in choices.py, and their checks."""

from dataclasses import fields
from typing import TYPE_CHECKING, ClassVar

from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig


class Choice:
    """Properties of a way to choose experts; the defaults are those of top-k, except for `pooled`."""

    variable: ClassVar[bool] = False
    """Whether a token may have fewer experts than it has slots."""
    linear: ClassVar[bool] = True
    """Whether a trained linear router scores the experts. Without one, no gradient reaches a router."""
    rewarded: ClassVar[bool] = False
    """Whether the router learns from each token's own loss after the forward pass."""
    pooled: ClassVar[bool] = False
    """Whether a token keeps to a pool of experts that depends on its type (router.pools)."""
    no_pools: ClassVar[str] = "it chooses among all experts"
    """Reason why this choice cannot be combined with pools, for error messages."""

    sparse: ClassVar[bool] = True
    """Whether a token has experts of its own. A layer without that is no MoE layer of a decoder."""

    def slots(self, router: "RouterConfig") -> int:
        """Slots of a token: the largest number of its experts."""
        return router.top_k

    def looks_ahead(self, *, training: bool) -> str | None:
        """Reason why the experts of a token depend on later tokens; None where they do not."""
        return None

    def check_router(self, router: "RouterConfig") -> None:
        """Raise ConfigError for options of the router that this choice cannot honour."""

    def in_vocabulary(self, vocab_size: int) -> "Choice":
        """This choice with its defaults set for a model with a vocabulary of that size."""
        return self

    def extra_parameters(self, d_model: int) -> int:
        """Number of parameters beyond those of the linear router."""
        return 0


def check_slots(max_experts: int | None, router: "RouterConfig") -> None:
    """Raise ConfigError unless max_experts slots hold top_k experts and are not more than there are."""
    check(
        max_experts is None or router.top_k <= max_experts <= router.num_routes,
        "router.choice.max_experts",
        max_experts,
        f"must lie between top_k = {router.top_k} and the number of experts, {router.num_routes}, or be None",
    )


def check_untouched(router: "RouterConfig", names: tuple[str, ...], why: str) -> None:
    """Raise ConfigError for the first of these options of the router that is not at its default."""
    defaults = {f.name: f.default for f in fields(router)}
    for name in names:
        value = getattr(router, name)
        rule = f"has no effect with choice = {router.choice.kind!r}: {why}; leave it at {defaults[name]!r}"
        check(value == defaults[name], f"router.{name}", value, rule)
