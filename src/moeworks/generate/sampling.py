"""Choosing the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 0.8
    """Logits are divided by it; 0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the fewest most probable tokens whose probabilities sum to at least this (Holtzman 2020)."""
    top_k: int | None = None
    """Draw from the k most probable tokens."""

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", self.temperature, "must not be negative")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")


def sample(logits_V: Tensor, config: SamplingConfig, generator: torch.Generator) -> int:
    """One token id from the logits [V]; in float32, on the CPU, so that a seed means the same everywhere."""
    logits_V = logits_V.float().cpu()
    if config.temperature == 0:
        return int(logits_V.argmax())
    kept_V, ids_V = logits_V.div(config.temperature).sort(descending=True, stable=True)
    if config.top_k is not None:
        kept_V, ids_V = kept_V[: config.top_k], ids_V[: config.top_k]
    probs_V = kept_V.softmax(dim=0)
    before_V = probs_V.cumsum(dim=0) - probs_V
    probs_V = probs_V.masked_fill(before_V >= config.top_p, 0.0)
    return int(ids_V[torch.multinomial(probs_V, 1, generator=generator)])
