"""Traces for tests: random ones, and the real one where it is to be had."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns
from moeworks.trace.block import id_dtype
from moeworks.trace.convert.arrays import from_arrays
from moeworks.trace.header import LayerField

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def real_file(name: str) -> Path:
    """A file of real data beside the repository; the test is skipped where it is missing."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"real data is not here: ../shared/data/{name}")
    return path


def real_trace() -> RoutingTrace:
    """DeepSeek-V2-Lite on four domains: 33,279 tokens, 26 MoE layers, 64 experts, top 6."""
    path = real_file("traces/dsv2lite_esft_routing.npz")
    return from_arrays(path, num_experts=64, layers=range(1, 27), model="DeepSeek-V2-Lite")


def trace_of(
    ids: np.ndarray | Sequence,
    num_experts: int,
    *,
    layers: Sequence[int] | None = None,
    weights: np.ndarray | None = None,
    **tokens,
) -> RoutingTrace:
    """A trace from ids [T, layers, K] (and weights alike); `tokens` are token_columns' arguments."""
    ids = np.asarray(ids)
    header = TraceHeader(
        num_experts=num_experts,
        top_k=ids.shape[2],
        layers=tuple(layers or range(ids.shape[1])),
        fields=() if weights is None else ("weights",),
    )
    columns = tuple(
        LayerColumns(
            ids[:, i].astype(id_dtype(num_experts)),
            None if weights is None else weights[:, i].astype(np.float16),
        )
        for i in range(ids.shape[1])
    )
    return RoutingTrace.from_blocks(header, [TraceBlock(token_columns(len(ids), **tokens), columns)])


def random_ids(rng: np.random.Generator, tokens: int, layers: int, experts: int, top_k: int) -> np.ndarray:
    """int64 [T, layers, K], without repeats in a token; some experts are likelier than others."""
    liking = rng.gumbel(size=(tokens, layers, experts)) + np.linspace(0, 1, experts)
    return np.argsort(-liking, axis=2)[:, :, :top_k]


def random_trace(
    seed: int = 0,
    *,
    tokens: int = 60,
    layers: int = 3,
    experts: int = 8,
    top_k: int = 2,
    sequences: int = 4,
    domains: Sequence[str] = ("code", "prose"),
) -> RoutingTrace:
    """Random routing of `sequences` contexts, each a document of its own; domains take turns."""
    rng = np.random.default_rng(seed)
    ids = random_ids(rng, tokens, layers, experts, top_k)
    sequence = np.sort(rng.integers(sequences, size=tokens))
    return trace_of(
        ids,
        experts,
        weights=rng.random(ids.shape),
        token_id=rng.integers(5, size=tokens),
        sequence=sequence,
        domain=sequence % len(domains),
        domains=domains,
    )


def random_block(header: TraceHeader, tokens: int, seed: int = 0, **columns) -> TraceBlock:
    """Random columns for all fields of `header`."""
    rng = np.random.default_rng(seed)
    layers = len(header.layers)
    ids = random_ids(rng, tokens, layers, header.num_experts, header.top_k).astype(
        id_dtype(header.num_experts)
    )
    shapes: dict[LayerField, tuple[int, ...]] = {
        "weights": (tokens, header.top_k),
        "entropy": (tokens,),
        "margin": (tokens,),
        "logits": (tokens, header.num_experts),
    }

    def layer(index: int) -> LayerColumns:
        drawn = {f: rng.normal(size=shapes[f]).astype(np.float16) for f in header.fields if f in shapes}
        kept = rng.random((tokens, header.top_k)) < 0.9 if "kept" in header.fields else None
        return LayerColumns(ids[:, index], kept=kept, **drawn)

    return TraceBlock(token_columns(tokens, **columns), tuple(layer(i) for i in range(layers)))


def same_block(left: TraceBlock, right: TraceBlock) -> bool:
    """Equal bit for bit, labels by name."""
    for name in ("token_id", "position", "sequence", "document", "phase", "valid"):
        if not np.array_equal(getattr(left.tokens, name), getattr(right.tokens, name)):
            return False
    names = [[block.tokens.domains[code] for code in block.tokens.domain] for block in (left, right)]
    if names[0] != names[1] or len(left.layers) != len(right.layers):
        return False
    for a, b in zip(left.layers, right.layers, strict=True):
        for name, value in vars(a).items():
            other = getattr(b, name)
            if (value is None) != (other is None):
                return False
            if value is not None and not (value.dtype == other.dtype and np.array_equal(value, other)):
                return False
    return True
