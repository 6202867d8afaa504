"""Soft MoE: no token chooses experts, every slot of an expert mixes all tokens of a sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice, check_untouched
from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig

_CHOOSING = (
    "score", "score_order", "renormalize", "renormalize_eps", "routing_scale", "weights_on", "router_bias",
    "selection_bias", "num_groups", "top_k_groups", "group_score", "input_jitter", "noisy_top_k",
    "gumbel_noise", "sparsemixer_eps", "num_identity_experts", "num_zero_experts",
)  # fmt: skip

_TOP_K = 2
"""Default top_k, which a router with a single expert cannot keep."""


@dataclass(frozen=True, kw_only=True)
class SoftChoice(Choice):
    """Soft MoE (Puigcerver et al. 2023): differentiable, for encoders; the layer is moeworks.SoftMoE."""

    linear: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    kind: Literal["soft"] = "soft"
    """Soft MoE, which a decoder refuses."""
    slots_per_expert: int = 1
    """Mixtures of tokens that an expert works on in a sequence of any length (p)."""

    def looks_ahead(self, *, training: bool) -> str | None:
        return "every slot mixes all tokens of a sequence, so that a token's output depends on those after it"

    def check_router(self, router: "RouterConfig") -> None:
        slots = self.slots_per_expert
        check(slots >= 1, "router.choice.slots_per_expert", slots, "must be at least 1")
        check_untouched(router, _CHOOSING, "no token chooses experts")
        default = min(_TOP_K, router.num_routes)
        rule = f"has no effect with choice = {self.kind!r}: a token gets a part of every expert; leave it at"
        check(router.top_k == default, "router.top_k", router.top_k, f"{rule} {default}")
