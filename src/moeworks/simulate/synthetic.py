"""Synthetic traces with a chosen skew of load and stickiness along the text, to compare real ones with."""

import numpy as np

from moeworks.errors import check
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns
from moeworks.trace.block import id_dtype


def synthetic_trace(
    *,
    tokens: int,
    layers: int,
    num_experts: int,
    top_k: int,
    skew: float = 0.0,
    stickiness: float = 0.0,
    sequence_length: int = 256,
    seed: int = 0,
) -> RoutingTrace:
    """Routing at random. Layers are independent of each other, and sequences too.

    Args:
        tokens: T.
        layers: MoE layers, numbered from 0.
        num_experts: E.
        top_k: K experts are drawn without replacement, one after the other.
        skew: the chance of an expert is proportional to rank^-skew (Zipf); ranks are shuffled in every layer.
        stickiness: the chance that a token takes all experts of the token before it.
        sequence_length: tokens of a sequence; the last one is shorter.
        seed: random seed of all draws.

    Raises ConfigError for values out of range.
    """
    check(tokens >= 1, "tokens", tokens, "must be at least 1")
    check(skew >= 0, "skew", skew, "must not be negative")
    check(0 <= stickiness <= 1, "stickiness", stickiness, "must lie in [0, 1]")
    check(sequence_length >= 1, "sequence_length", sequence_length, "must be at least 1")
    header = TraceHeader(
        num_experts=num_experts, top_k=top_k, layers=tuple(range(layers)), engine="synthetic"
    )
    rng = np.random.default_rng(seed)
    sequence = np.arange(tokens) // sequence_length
    first = np.arange(tokens) % sequence_length == 0
    liking = -skew * np.log(np.arange(1, num_experts + 1))
    columns = []
    for _ in range(layers):
        # The largest of log p + Gumbel are a draw without replacement (Kool et al. 2019, section 3).
        drawn = rng.permutation(liking) + rng.gumbel(size=(tokens, num_experts))
        ids = np.argsort(-drawn, axis=1)[:, :top_k].astype(id_dtype(num_experts))
        fresh = first | (rng.random(tokens) >= stickiness)
        source = np.maximum.accumulate(np.where(fresh, np.arange(tokens), 0))
        columns.append(LayerColumns(ids[source]))
    block = TraceBlock(token_columns(tokens, sequence=sequence), tuple(columns))
    return RoutingTrace.from_blocks(header, [block])
