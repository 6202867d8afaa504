"""The routed experts that vLLM returns (enable_return_routed_experts; protocol of its OpenAI server, 2026).

A choice of a completion has `routed_experts`: base64 of an .npy with ids [tokens - 1, layers, top_k], because
the last sampled token was never forwarded. Layers are all hidden layers of the model; a dense one is filled
with 0. Token ids stand beside it, in `prompt_token_ids` and `token_ids`, when the request asked for them.
"""

import base64
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeworks.errors import ConfigError, DataError
from moeworks.files import write_atomically
from moeworks.trace.block import LayerColumns, TraceBlock, small_ids, token_columns
from moeworks.trace.header import TraceHeader
from moeworks.trace.npy import read_npy, read_npy_file
from moeworks.trace.read import RoutingTrace


@dataclass(frozen=True, eq=False)
class _Sequence:
    ids: np.ndarray  # [tokens, layers, K]
    token_ids: list[int] | None
    prompt_tokens: int


def from_vllm(
    path: str | Path,
    *,
    num_experts: int,
    layers: Sequence[int] | None = None,
    model: str = "unknown",
) -> RoutingTrace:
    """A trace from responses: .json, .jsonl (one a line), or the .npy of one completion.

    Args:
        num_experts: E of the model; the dump does not say.
        layers: the MoE layers of the model. None: those that are not filled with 0 throughout.

    Raises DataError for what is no such dump, and when no layer is left.
    """
    path = Path(path)
    sequences = list(_sequences(path))
    if not sequences:
        raise DataError(f"{path}: no choice in it has routed_experts")
    shapes = {sequence.ids.shape[1:] for sequence in sequences}
    if len(shapes) != 1:
        raise DataError(f"{path}: its completions differ in layers and top_k: {sorted(shapes)}")
    ids = np.concatenate([sequence.ids for sequence in sequences])
    found = np.flatnonzero((ids > 0).any(axis=(0, 2)))
    chosen = tuple(int(layer) for layer in (found if layers is None else layers))
    if not chosen or chosen[-1] >= ids.shape[1]:
        raise DataError(f"{path}: has {ids.shape[1]} layers; none is left of {chosen or 'them'}")
    if ids.shape[2] > num_experts:
        raise DataError(f"{path}: has {ids.shape[2]} experts a token; num_experts is {num_experts}")
    header = TraceHeader(
        num_experts=num_experts, top_k=ids.shape[2], layers=chosen, model=model, engine="vLLM"
    )
    computed = np.all(ids[:, chosen] >= 0, axis=(1, 2))
    columns = tuple(
        LayerColumns(small_ids(ids[:, layer], computed, num_experts, str(path))) for layer in chosen
    )
    try:
        tokens = replace(_tokens(sequences), valid=computed)
    except ConfigError as error:  # token ids that are none
        raise DataError(f"{path}: {error}") from error
    return RoutingTrace.from_blocks(header, [TraceBlock(tokens, columns)])


def to_vllm(trace: RoutingTrace, path: str | Path) -> None:
    """Write .jsonl: a response per sequence, as from_vllm reads it; dense layers are filled with 0.

    Its `token_ids` hold one token more than there is routing, as vLLM's do: a -1. Raises DataError when the
    disk refuses.
    """
    trace.require_full_slots("vLLM's format")
    tokens = trace.tokens
    full = np.zeros((len(tokens), trace.header.layers[-1] + 1, trace.header.top_k), np.uint16)
    for number in trace.header.layers:
        full[:, number] = trace.ids(number)
    bounds = np.r_[0, np.flatnonzero(np.diff(tokens.sequence)) + 1, len(tokens)]
    lines = []
    for start, stop in itertools.pairwise(bounds):
        prompt = int((tokens.phase[start:stop] != 1).sum())
        ids = tokens.token_id[start:stop].tolist()
        encoded = base64.b64encode(_npy(full[start:stop])).decode()
        choice = dict(index=0, token_ids=[*ids[prompt:], -1], routed_experts=encoded)
        lines.append(json.dumps(dict(prompt_token_ids=ids[:prompt], choices=[choice])))
    write_atomically(Path(path), ("\n".join(lines) + "\n").encode())


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _sequences(path: Path) -> Iterator[_Sequence]:
    if path.suffix == ".npy":
        yield _Sequence(_checked(read_npy_file(path), str(path)), None, 0)
        return
    try:
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if path.suffix != ".jsonl":
        yield from _responses(content, str(path))
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield from _responses(line, f"{path} line {number}")


def _responses(text: bytes, source: str) -> Iterator[_Sequence]:
    """The completions of a response, or of a list of them."""
    try:
        content = json.loads(text)
        for response in content if isinstance(content, list) else [content]:
            yield from _choices(response, source)
    except (
        ValueError, AttributeError, TypeError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise DataError(f"{source}: cannot be read as a response of vLLM: {error}") from error


def _choices(response: dict[str, Any], source: str) -> Iterator[_Sequence]:
    for choice in response.get("choices", ()):
        encoded = choice.get("routed_experts")
        if encoded is None:  # aborted before its first forward pass, or not asked for
            continue
        raw = base64.b64decode(encoded, validate=True)
        ids = _checked(read_npy(raw, f"{source}: routed_experts"), source)
        prompt = choice.get("prompt_token_ids") or response.get("prompt_token_ids")
        output = choice.get("token_ids")
        if prompt is None or output is None:
            yield _Sequence(ids, None, len(prompt or ()))
            continue
        token_ids = [*prompt, *output][: len(ids)]
        if len(token_ids) < len(ids):
            raise DataError(f"{source}: routing of {len(ids)} tokens beside {len(token_ids)} token ids")
        yield _Sequence(ids, token_ids, len(prompt))


def _checked(ids: np.ndarray, source: str) -> np.ndarray:
    if ids.ndim != 3 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"{source}: routed_experts is {ids.dtype} {ids.shape}, not ids [tokens, layers, top_k]"
        )
    if not ids.shape[2]:
        raise DataError(f"{source}: routed_experts is {ids.shape}: its top_k is 0, it must be at least 1")
    return ids


def _tokens(sequences: list[_Sequence]) -> Any:
    lengths = [len(sequence.ids) for sequence in sequences]
    token_id = [t for s in sequences for t in (s.token_ids or [-1] * len(s.ids))]
    phase = [
        int(bool(s.prompt_tokens) and place >= s.prompt_tokens)
        for s in sequences
        for place in range(len(s.ids))
    ]
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    return token_columns(sum(lengths), token_id=token_id, sequence=sequence, phase=phase)
