"""Routers without parameters: experts by a hash of the token, at random, or in turn."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from moeworks.config.choice import Choice, check_untouched
from moeworks.errors import check

if TYPE_CHECKING:
    from moeworks.config.router import RouterConfig

_SCORING = (
    "score", "score_order", "router_bias", "selection_bias", "num_groups", "top_k_groups", "input_jitter",
    "noisy_top_k", "gumbel_noise",
)  # fmt: skip


class FixedChoice(Choice):
    """A choice without scores, and so without their options; every weight is routing_scale / top_k."""

    linear: ClassVar[bool] = False
    no_pools: ClassVar[str] = "its experts are a function of ids and places over all of them"

    def check_router(self, router: "RouterConfig") -> None:
        check_untouched(router, _SCORING, "it makes no scores")


@dataclass(frozen=True, kw_only=True)
class HashChoice(FixedChoice):
    """Experts by the token's id alone (Hash Layers, Roller et al. 2021), the same in every layer."""

    kind: Literal["hash"] = "hash"
    """Fixed experts of each token of the vocabulary."""
    function: Literal["universal", "modulo", "balanced"] = "universal"
    """universal: one random function per slot (Carter and Wegman 1979); modulo: the digits of the id in base
    E; balanced: tokens by falling frequency in the training text, each to the experts with the least load."""
    seed: int = 0
    """Random seed of the functions."""
    vocab_size: int | None = None
    """Size of the table of `balanced`; None is the size of the model's vocabulary."""

    def in_vocabulary(self, vocab_size: int) -> "HashChoice":
        return self if self.vocab_size is not None else replace(self, vocab_size=vocab_size)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "router.choice.seed", self.seed, "must lie between 0 and 2**31 - 1")
        size = self.vocab_size
        check(size is None or size >= 1, "router.choice.vocab_size", size, "must be at least 1, or None")


@dataclass(frozen=True, kw_only=True)
class RandomChoice(FixedChoice):
    """Random experts, equally likely; the same numbers on every machine."""

    kind: Literal["random"] = "random"
    """Random experts."""
    per: Literal["step", "token"] = "step"
    """step: drawn anew in each optimizer step for each place and token of a sequence, in evaluation always as
    in step 0; token: drawn once for each token of the vocabulary (random hash of Roller et al. 2021)."""
    seed: int = 0
    """Random seed of the draws."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "router.choice.seed", self.seed, "must lie between 0 and 2**31 - 1")


@dataclass(frozen=True, kw_only=True)
class RoundRobinChoice(FixedChoice):
    """Experts in turn by the place in the sequence: place p has experts p K, ..., p K + K - 1 modulo E."""

    kind: Literal["round_robin"] = "round_robin"
    """Experts in turn."""
