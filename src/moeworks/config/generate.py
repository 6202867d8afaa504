"""How text is drawn from a model."""

from dataclasses import dataclass

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
