"""Choosing the next token."""

import torch
from torch import Tensor

from moeworks.config.generate import SamplingConfig


def sample(
    logits_V: Tensor, config: SamplingConfig, generator: torch.Generator, seen_ids: Tensor | None = None
) -> int:
    """One token id from the logits [V]; in float32, on the CPU, so that a seed means the same everywhere.

    `seen_ids`, int64: the tokens of prompt and text so far, which repetition_penalty holds back.
    """
    logits_V = penalised(logits_V.float().cpu(), config.repetition_penalty, seen_ids)
    if config.temperature == 0:
        return int(logits_V.argmax())
    probs_V, ids_V = candidates(logits_V, config)
    return int(ids_V[torch.multinomial(probs_V, 1, generator=generator)])


def penalised(logits_V: Tensor, penalty: float, seen_ids: Tensor | None) -> Tensor:
    """The logits, with those of `seen_ids` moved away from being chosen, once however often one was seen."""
    if penalty == 1.0 or seen_ids is None or seen_ids.numel() == 0:
        return logits_V
    ids = seen_ids.unique()
    held = logits_V[ids]
    return logits_V.index_copy(0, ids, torch.where(held > 0, held / penalty, held * penalty))


def candidates(logits_V: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Weights to draw by and their token ids, the most probable first; 0 for tokens that are cut off."""
    # Ordered before anything is rounded. The largest is 0 before the division, so that no small temperature
    # makes infinities of it.
    kept_V, ids_V = logits_V.sort(descending=True, stable=True)
    kept_V = (kept_V - kept_V[0]).div(config.temperature)
    if config.top_k is not None:
        kept_V, ids_V = kept_V[: config.top_k], ids_V[: config.top_k]
    probs_V = kept_V.softmax(dim=0)
    before_V = probs_V.cumsum(dim=0) - probs_V
    probs_V = probs_V.masked_fill(before_V >= config.top_p, 0.0)
    return probs_V.masked_fill(probs_V < config.min_p * probs_V[0], 0.0), ids_V
