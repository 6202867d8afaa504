"""SGLang's expert distribution recorder (srt/eplb/expert_distribution.py, read at commit 02295fe).

`per_token` files hold "records", one per forward pass, and "last_physical_to_logical_map", int [layers,
physical]. A record has input_ids, positions, extend_seq_lens, forward_mode and topk_ids_of_layer, int32
[layers, tokens, 8] of physical experts with -1 in slots that no layer wrote. `stat` files hold
"logical_count", int [steps, layers, experts]: counts, and no tokens.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeworks.errors import DataError, check
from moeworks.files import appearing
from moeworks.trace.block import LayerColumns, TraceBlock, small_ids, token_columns
from moeworks.trace.convert.torch_archive import read_torch_archive
from moeworks.trace.counts import ExpertCounts, whole_counts
from moeworks.trace.header import TraceHeader
from moeworks.trace.read import RoutingTrace

EXTEND, DECODE, MIXED, IDLE, TARGET_VERIFY, DRAFT_EXTEND = range(1, 7)
"""The values of SGLang's ForwardMode that matter here (srt/model_executor/forward_batch_info.py)."""


def read_sglang_counts(path: str | Path) -> ExpertCounts:
    """The counts of a `stat` file, one group per buffered step. Raises DataError for another file."""
    content = _content(path, "logical_count")
    if not isinstance(content["logical_count"], np.ndarray):
        raise DataError(f"{path}: logical_count is no tensor")
    counts = whole_counts(content["logical_count"], f"{path}: logical_count")
    if counts.ndim != 3:
        raise DataError(f"{path}: logical_count is {counts.shape}, not [steps, layers, experts]")
    return ExpertCounts(tuple(f"step {i}" for i in range(len(counts))), tuple(range(counts.shape[1])), counts)


def from_sglang(path: str | Path, *, model: str = "unknown") -> RoutingTrace:
    """A trace from a `per_token` file; only expert ids are in it.

    Physical experts become logical ones by the last map of the file. Layers that no token wrote (dense
    ones) are left out, and so are passes of a draft model, which write into the target's layers from 0 on.
    The file names no requests: an extended run of tokens is a sequence, and a decoded token continues the
    only sequence that ends before its position, else it begins one.

    Raises DataError for a file of another kind.
    """
    content = _content(path, "records")
    try:
        return _trace_of(content, path, model)
    except (TypeError, AttributeError, LookupError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: its records are not as SGLang's recorder writes them: {error}") from error


def _trace_of(content: dict[str, Any], path: str | Path, model: str) -> RoutingTrace:
    target = [record for record in content["records"] if _is_target(record, path)]
    records = [record for record in target if record["topk_ids_of_layer"].shape[1]]
    if not records:
        raise DataError(f"{path}: has no forward pass with tokens of the target model")
    if len({id(record["topk_ids_of_layer"]) for record in records}) != len(records):
        raise DataError(f"{path}: forward passes share one tensor of ids; the recorder writes one for each")
    written = np.zeros(records[0]["topk_ids_of_layer"].shape[::2], np.bool_)  # [layers, slots]
    for record in records:
        written |= (record["topk_ids_of_layer"] >= 0).any(axis=1)
    layers = tuple(int(i) for i in np.flatnonzero(written.any(axis=1)))
    if not layers:
        raise DataError(f"{path}: no layer has an expert: was the recorder running?")
    logical = _integers(content["last_physical_to_logical_map"])
    header = TraceHeader(
        num_experts=int(logical.max()) + 1,
        top_k=int(written.any(axis=0).sum()),
        layers=layers,
        model=model,
        engine="SGLang",
        note="sequences of decoded tokens were found by their positions",
    )
    sequences = _Sequences()
    return RoutingTrace.from_blocks(
        header, [_block(record, header, logical, sequences) for record in records]
    )


def to_sglang(trace: RoutingTrace, path: str | Path) -> None:
    """Write a `per_token` file: one record per sequence, with physical experts equal to logical ones.

    Raises ConfigError for top_k > 8, which the recorder's format has no room for, and DataError when the disk
    refuses.
    """
    trace.require_full_slots("SGLang's format")
    check(trace.header.top_k <= 8, "top_k", trace.header.top_k, "SGLang's recorder holds 8 experts a token")
    num_layers = trace.header.layers[-1] + 1
    tokens, ids = trace.tokens, {number: trace.ids(number) for number in trace.header.layers}
    records = []
    for number, rows in enumerate(_runs(tokens.sequence)):
        topk = torch.full((num_layers, rows.stop - rows.start, 8), -1, dtype=torch.int32)
        for layer, chosen in ids.items():
            topk[layer, :, : trace.header.top_k] = torch.from_numpy(chosen[rows].astype(np.int32))
        decoded = bool((tokens.phase[rows] == 1).all())
        records.append(
            dict(
                forward_pass_id=number,
                rank=0,
                gatherer_key="primary",
                input_ids=tokens.token_id[rows].tolist(),
                positions=tokens.position[rows].tolist(),
                extend_seq_lens=None if decoded else [rows.stop - rows.start],
                forward_mode=DECODE if decoded else EXTEND,
                topk_ids_of_layer=topk,
                misc_objects=[],
            )
        )
    logical = torch.arange(trace.header.num_experts).repeat(num_layers, 1)
    _save(dict(records=records, last_physical_to_logical_map=logical), Path(path))


def _save(content: dict[str, Any], path: Path) -> None:
    with appearing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's word for a disk that refuses
            raise DataError(f"{path}: cannot be written: {error}") from error


def _content(path: str | Path, key: str) -> dict[str, Any]:
    content = read_torch_archive(path)
    if not isinstance(content, dict) or key not in content:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: not a file of SGLang's recorder with {key!r}; it holds: {found}")
    return content


def _is_target(record: dict[str, Any], path: str | Path) -> bool:
    missing = {"topk_ids_of_layer", "input_ids", "positions", "forward_mode"} - record.keys()
    if missing:
        raise DataError(f"{path}: a record has no {min(missing)!r}: recorded with mode per_pass?")
    return record["forward_mode"] not in (IDLE, DRAFT_EXTEND)


def _block(
    record: dict[str, Any], header: TraceHeader, logical: np.ndarray, sequences: "_Sequences"
) -> TraceBlock:
    topk = record["topk_ids_of_layer"]
    count = topk.shape[1]
    positions = _integers(record["positions"])[:count]
    layers = []
    computed = np.ones(count, np.bool_)
    for number in header.layers:
        physical = topk[number, :, : header.top_k]
        computed &= (physical >= 0).all(axis=1)
        ids = logical[number][np.maximum(physical, 0)]
        layers.append(LayerColumns(small_ids(ids, np.ones(count, np.bool_), header.num_experts, "the map")))
    decode = record["forward_mode"] in (DECODE, TARGET_VERIFY)
    tokens = token_columns(
        count,
        token_id=_integers(record["input_ids"])[:count],
        position=positions,
        sequence=sequences.of(positions, None if decode else record.get("extend_seq_lens")),
        phase=np.full(count, 1 if decode else 0),
        valid=computed,
    )
    return TraceBlock(tokens, tuple(layers))


def _integers(values: Any) -> np.ndarray:
    """A tensor, or a flat list of ints; lists that hold one list many times would take any memory."""
    if not isinstance(values, np.ndarray) and not all(type(value) is int for value in values):
        raise TypeError("input_ids and positions must be tensors or lists of ints")
    return np.asarray(values)


class _Sequences:
    """Gives sequence numbers to the tokens of one pass after the other."""

    def __init__(self) -> None:
        self._next = 0
        self._ends: dict[int, set[int]] = {}  # position -> the sequences that end there

    def of(self, positions: np.ndarray, lengths: list[int] | None) -> np.ndarray:
        starts = np.r_[0, np.cumsum(lengths)] if lengths else np.arange(len(positions) + 1)
        numbers = np.zeros(len(positions), np.int64)
        for start, stop in itertools.pairwise(starts):
            if stop > start:
                number = self._number(int(positions[start]))
                numbers[start:stop] = number
                self._ends.setdefault(int(positions[stop - 1]), set()).add(number)
        return numbers

    def _number(self, position: int) -> int:
        fitting = self._ends.get(position - 1, set())
        if position and len(fitting) == 1:
            return fitting.pop()
        self._next += 1
        return self._next - 1


def _runs(values: np.ndarray) -> Iterator[slice]:
    """Slices of equal neighbours."""
    if len(values):
        bounds = np.r_[0, np.flatnonzero(values[1:] != values[:-1]) + 1, len(values)]
        yield from (slice(int(a), int(b)) for a, b in itertools.pairwise(bounds))
