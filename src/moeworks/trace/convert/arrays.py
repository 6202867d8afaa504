"""Arrays in an .npz: `D_ids` [T, layers, K], `D_w` of the same shape, `D_seqlens`, for each domain D.

The form in which routing of DeepSeek-V2-Lite on ESFT's tasks was kept; the plainest one there is.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moeworks.errors import ConfigError, DataError
from moeworks.files import write_atomically
from moeworks.trace.block import (
    LayerColumns,
    TraceBlock,
    half_floats,
    small_ids,
    token_columns,
    whole_numbers,
)
from moeworks.trace.header import TraceHeader
from moeworks.trace.npy import read_npz_file
from moeworks.trace.read import RoutingTrace


def from_arrays(
    path: str | Path,
    *,
    num_experts: int,
    layers: Sequence[int] | None = None,
    model: str = "unknown",
) -> RoutingTrace:
    """A trace of all domains in the file; each sequence is a document.

    Args:
        num_experts: E of the model.
        layers: the index in the model of each layer of the arrays; None numbers them from 0.

    Raises DataError for a file without such arrays, or whose arrays do not fit together.
    """
    arrays = read_npz_file(Path(path))
    domains = sorted(name.removesuffix("_ids") for name in arrays if name.endswith("_ids"))
    if not domains:
        raise DataError(f"{path}: has no array that ends in _ids; it has: {', '.join(arrays)}")
    ids = [arrays[f"{domain}_ids"] for domain in domains]
    if any(part.ndim != 3 or part.shape[1:] != ids[0].shape[1:] for part in ids):
        raise DataError(f"{path}: ids must be [T, layers, K], equal in all domains but for T")
    if not 1 <= ids[0].shape[2] <= num_experts:
        raise DataError(f"{path}: has {ids[0].shape[2]} experts a token; num_experts is {num_experts}")
    weights = [arrays.get(f"{domain}_w") for domain in domains]
    has_weights = all(w is not None and w.shape == i.shape for w, i in zip(weights, ids, strict=True))
    lengths = [
        _lengths(arrays.get(f"{d}_seqlens"), len(i), f"{path}: {d}_seqlens")
        for d, i in zip(domains, ids, strict=True)
    ]
    count = sum(len(part) for part in ids)
    flat = np.concatenate(lengths)
    computed = np.all(np.concatenate(ids) >= 0, axis=(1, 2))
    tokens = token_columns(
        count,
        valid=computed,
        sequence=np.repeat(np.arange(len(flat)), flat),
        domain=np.repeat(np.arange(len(domains)), [len(part) for part in ids]),
        domains=domains,
    )
    header = TraceHeader(
        num_experts=num_experts,
        top_k=ids[0].shape[2],
        layers=tuple(layers or range(ids[0].shape[1])),
        fields=("weights",) if has_weights else (),
        model=model,
    )
    all_ids = small_ids(np.concatenate(ids), computed, num_experts, str(path))
    all_weights = _weights(weights, str(path)) if has_weights else None
    columns = tuple(
        LayerColumns(all_ids[:, i], None if all_weights is None else all_weights[:, i])
        for i in range(all_ids.shape[1])
    )
    return RoutingTrace.from_blocks(header, [TraceBlock(tokens, columns)])


def _weights(parts: Sequence[np.ndarray | None], source: str) -> np.ndarray:
    together = np.concatenate([part for part in parts if part is not None])
    if together.dtype.kind not in "iuf":
        raise DataError(f"{source}: its weights are {together.dtype}; they must be numbers")
    return half_floats(together)


def _lengths(stored: np.ndarray | None, tokens: int, source: str) -> np.ndarray:
    """Tokens of each sequence: whole numbers that add up to `tokens`; None is a single sequence."""
    if stored is None:
        return np.array([tokens])
    try:
        lengths = whole_numbers(stored, "lengths", np.int64)
    except ConfigError as error:
        raise DataError(f"{source}: {error}") from error
    if lengths.ndim != 1 or lengths.min(initial=0) < 0 or lengths.max(initial=0) > tokens:
        raise DataError(f"{source}: must hold the number of tokens of each sequence, at most {tokens}")
    if lengths.sum() != tokens:
        raise DataError(f"{source}: the lengths do not add up to the {tokens} tokens")
    return lengths


def to_arrays(trace: RoutingTrace, path: str | Path) -> None:
    """Write the trace as such an .npz. Raises DataError when the disk refuses."""
    trace.require_full_slots("this format")
    tokens, header = trace.tokens, trace.header
    ids = np.stack([trace.ids(layer) for layer in header.layers], axis=1)
    has_weights = "weights" in header.fields
    weights = np.stack([trace.weights(layer) for layer in header.layers], axis=1) if has_weights else None
    arrays: dict[str, np.ndarray] = {}
    for code, domain in enumerate(tokens.domains):
        rows = tokens.domain == code
        arrays[f"{domain}_ids"] = ids[rows]
        if weights is not None:
            arrays[f"{domain}_w"] = weights[rows]
        sequence = tokens.sequence[rows]
        ends = np.flatnonzero(np.diff(sequence, append=sequence[-1:] + 1)) + 1
        arrays[f"{domain}_seqlens"] = np.diff(ends, prepend=0)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(Path(path), buffer.getvalue())
