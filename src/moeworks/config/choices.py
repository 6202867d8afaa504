"""How experts are chosen once they have scores: one small config a way, told apart by `kind`.

A choice is a field of RouterConfig. Each says how many slots a token has, whether some of them may stay
empty, whether it looks at later tokens, and what it cannot be combined with. docs/routers.md has the table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice as Choice
from moeworks.config.choice import check_slots as check_slots
from moeworks.config.fixed_choices import HashChoice, RandomChoice, RoundRobinChoice
from moeworks.config.policy_choices import PolicyGradientChoice

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig


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


ChoiceConfig = TopKChoice | HashChoice | RandomChoice | RoundRobinChoice | PolicyGradientChoice | CustomChoice
"""Any of them."""
