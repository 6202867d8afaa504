"""The key/value cache: bytes that it takes on a device, and bytes that a decode step reads of it."""

import math
from functools import reduce

from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import ModelConfig
from moeworks.plan.layers import mixer_counts, mixers_of


def cache_bytes(model: ModelConfig, context: int, bytes_per_value: float, ranks: int = 1) -> int:
    """Bytes of one sequence's caches on one of `ranks` tensor-parallel devices, rounded up.

    Heads divide; what is one head does not: MLA's latent lies on every device, and a key/value head on
    several when there are fewer heads than devices. On one device it is config.count.count_cache_bytes.
    """
    return math.ceil(_cache_bytes(model, context, bytes_per_value, ranks, read=False))


def cache_read_bytes(model: ModelConfig, context: int, bytes_per_value: float, ranks: int = 1) -> float:
    """Bytes of them that decoding the sequence's token number `context` reads.

    All that is kept, but of a sparse attention (DeepSeek-V3.2) the scorer's keys and only the chosen latents.
    """
    return _cache_bytes(model, context, bytes_per_value, ranks, read=True)


def cache_heads(mixer: MixerConfig) -> int:
    """Parts into which what a mixer keeps can be divided."""
    match mixer:
        case GQAConfig() | MixtureOfAttentionConfig():
            return mixer.num_kv_heads
        case GatedDeltaConfig():
            return mixer.num_key_heads
        case MLAConfig():
            return 1


def divisible_heads(model: ModelConfig) -> int:
    """The number that a count of tensor-parallel devices must divide: query heads, common to all layers."""
    return reduce(math.gcd, (_query_heads(mixer) for mixer, _ in mixers_of(model)))


def visible_keys(length: int, window: int | None = None, chunk: int | None = None) -> int:
    """Pairs of a query and a key that it sees, over a causal prompt of `length` tokens.

    `window`: a query sees its last `window` positions; `chunk`: those of its own block of that length.

    >>> visible_keys(4), visible_keys(4, window=2), visible_keys(4, chunk=3)
    (10, 7, 7)
    """
    if chunk is not None:
        blocks, rest = divmod(length, chunk)
        return blocks * visible_keys(chunk) + visible_keys(rest)
    full = bounded(length, window)
    return full * (full + 1) // 2 + (length - full) * full


def bounded(length: int, limit: int | None) -> int:
    """`length`, or `limit` if that is less."""
    return length if limit is None else min(length, limit)


def _cache_bytes(
    model: ModelConfig, context: int, bytes_per_value: float, ranks: int, *, read: bool
) -> float:
    total = 0.0
    for mixer, count, layers in mixer_counts(model):
        heads, kept = cache_heads(mixer), bounded(context, count.cache_reach)
        if read:
            scorer = _scorer_values(mixer)
            held = (count.cached - scorer) * bounded(kept, count.reach) + scorer * kept
        else:
            held = count.cached * kept
        share = math.ceil(heads / ranks) / heads
        total += layers * share * (held * bytes_per_value + count.state_bytes)
    return total


def _scorer_values(mixer: MixerConfig) -> int:
    """Values per token that a sparse attention's scorer keeps."""
    index = mixer.own_indexer if isinstance(mixer, MLAConfig) else None
    return 0 if index is None else index.head_dim


def _query_heads(mixer: MixerConfig) -> int:
    match mixer:
        case GQAConfig() | MLAConfig():
            return mixer.num_heads
        case GatedDeltaConfig():
            return mixer.num_key_heads
        case MixtureOfAttentionConfig():
            return mixer.num_kv_heads
