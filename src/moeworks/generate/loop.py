"""Token by token."""

from collections.abc import Iterator, Sequence

import torch

from moeworks.config.generate import SamplingConfig
from moeworks.generate.sampling import sample
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that follow `prompt_ids` (not empty), or until `stop_id`.

    When prompt and answer outgrow max_seq_len, the oldest tokens are forgotten, half of it at a time.
    """
    sampling = sampling or SamplingConfig()
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    limit = model.config.max_seq_len
    # Published models allow for millions of positions: no cache is made for more than will come.
    size = min(limit, len(prompt_ids) + max_new_tokens)
    ids, cache = list(prompt_ids), None
    for _ in range(max_new_tokens):
        if cache is None or cache.length == limit:
            keep = limit if len(ids) <= limit else max(limit // 2, 1)
            cache = KVCache(model.config, 1, size, dtype=parameter.dtype, device=parameter.device)
            fed = ids[-keep:]
        else:
            fed = ids[-1:]
        logits = model(torch.tensor([fed], device=parameter.device), cache=cache).logits_BLV
        ids.append(sample(logits[0, -1], sampling, generator))
        if ids[-1] == stop_id:
            return
        yield ids[-1]
