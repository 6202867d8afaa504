"""Choosing the next token."""

import torch
from torch import Tensor

from moeworks.config.generate import SamplingConfig


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
