"""How experts are chosen once they have scores: one small config a way, told apart by `kind`.

A choice is a field of RouterConfig. Each says how many slots a token has, whether some of them may stay
empty, whether it looks at later tokens, and what it cannot be combined with. docs/routers.md has the table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig


class Choice:
    """What every choice answers; the defaults are those of top-k."""

    variable: ClassVar[bool] = False
    """Whether a token may have fewer experts than it has slots."""

    def slots(self, router: "RouterConfig") -> int:
        """Slots of a token: the most experts that it can have."""
        return router.top_k

    def looks_ahead(self, *, training: bool) -> str | None:
        """Why a token's experts depend on later tokens; None where they do not."""
        return None

    def check_router(self, router: "RouterConfig") -> None:
        """Raise ConfigError for options of the router that this choice cannot honour."""


@dataclass(frozen=True, kw_only=True)
class TopKChoice(Choice):
    """Every token takes its top_k best experts (token choice)."""

    kind: Literal["top_k"] = "top_k"
    """Token choice."""


@dataclass(frozen=True, kw_only=True)
class CustomChoice(Choice):
    """A router of your own, registered under a name: see moeworks.layers.routers.register_router."""

    variable: ClassVar[bool] = True

    kind: Literal["custom"] = "custom"
    """A router of your own."""
    name: str = ""
    """The name that it was registered under."""
    max_experts: int | None = None
    """Slots of a token; None means top_k."""

    def slots(self, router: "RouterConfig") -> int:
        return self.max_experts or router.top_k

    def check_router(self, router: "RouterConfig") -> None:
        check_slots(self.max_experts, router)


ChoiceConfig = TopKChoice | CustomChoice
"""Any of them."""


def check_slots(max_experts: int | None, router: "RouterConfig") -> None:
    """Raise ConfigError unless max_experts slots hold top_k experts and are not more than there are."""
    check(
        max_experts is None or router.top_k <= max_experts <= router.num_routes,
        "router.choice.max_experts",
        max_experts,
        f"must lie between top_k = {router.top_k} and the number of experts, {router.num_routes}, or be None",
    )
