"""Load matrices: assignments per group (domain, step), layer and expert, and the files that hold them.

A matrix of counts is what OLMoE's analysis, EPLB and SGLang's `stat` recorder work with. It has lost the
tokens, so it makes no trace; everything about load is computed from it.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moeworks.errors import ConfigError, DataError, check
from moeworks.files import write_atomically
from moeworks.trace.block import whole_numbers
from moeworks.trace.npy import read_npy_file, read_npz_file
from moeworks.trace.read import RoutingTrace


@dataclass(frozen=True, eq=False)
class ExpertCounts:
    """Assignments of G groups of tokens."""

    groups: tuple[str, ...]
    """What each group is: a domain, a step, or "all"."""
    layers: tuple[int, ...]
    """The layers, by their index in the model where that is known."""
    counts: np.ndarray
    """int64 [G, layers, E]."""

    def __post_init__(self) -> None:
        shape = self.counts.shape
        good = len(shape) == 3 and shape[:2] == (len(self.groups), len(self.layers))
        check(
            good, "counts", shape, f"must be [{len(self.groups)} groups, {len(self.layers)} layers, experts]"
        )

    def total(self) -> np.ndarray:
        """int64 [layers, E], all groups together."""
        return self.counts.sum(axis=0)


def count_experts(trace: RoutingTrace, by: Literal["all", "domain", "sequence"] = "all") -> ExpertCounts:
    """Assignments of a trace's tokens, before any were dropped, for each layer and expert."""
    tokens, experts = trace.tokens, trace.header.num_experts
    if by == "all":
        codes, groups = np.zeros(len(tokens), np.int64), ("all",)
    elif by == "domain":
        codes, groups = tokens.domain.astype(np.int64), tokens.domains
    else:
        numbers, codes = np.unique(tokens.sequence, return_inverse=True)
        groups = tuple(str(number) for number in numbers)
    counts = np.stack(
        [
            count_groups(trace.ids(layer), codes, len(groups), experts)
            for layer in trace.header.layers
        ],
        axis=1,
    )  # fmt: skip
    return ExpertCounts(groups, trace.header.layers, counts)


def count_groups(ids: np.ndarray, groups: np.ndarray, num_groups: int, num_experts: int) -> np.ndarray:
    """int64 [groups, E]: assignments of ids [T, K] by the group [T] of their token; no empty slots."""
    base = groups.astype(np.int64) * (num_experts + 1)
    counts = np.zeros(num_groups * (num_experts + 1), np.int64)
    for slot in range(ids.shape[1]):  # slot by slot: an eighth of the memory at K = 8
        counts += np.bincount(base + ids[:, slot], minlength=len(counts))
    return counts.reshape(num_groups, num_experts + 1)[:, :num_experts]


def read_counts(path: str | Path, layers: Sequence[int] | None = None) -> ExpertCounts:
    """Counts from .npz (an array a group), .npy or .json; arrays are [layers, E], or [groups, layers, E].

    JSON is a nested list, as in EPLB's examples, or an object of them by group. Pickles are refused: turn
    them into one of these where they come from. Raises DataError for what is no such file.
    """
    path = Path(path)
    named = _arrays(path)
    groups: list[str] = []
    matrices: list[np.ndarray] = []
    for name, array in named.items():
        if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.number):
            raise DataError(f"{path}: {name or 'the array'} is {array.dtype} {array.shape}, not [layers, E]")
        several = array.ndim == 3
        groups += [f"{name}{i}" for i in range(len(array))] if several else [name or "all"]
        matrices += list(array) if several else [array]
    shapes = {matrix.shape for matrix in matrices}
    if len(shapes) != 1:
        raise DataError(f"{path}: its arrays differ in shape: {sorted(shapes)}")
    counts = whole_counts(np.stack(matrices), str(path))
    return ExpertCounts(tuple(groups), tuple(layers or range(counts.shape[1])), counts)


def whole_counts(values: np.ndarray, source: str) -> np.ndarray:
    """`values` as int64. Raises DataError, naming `source`, unless they are whole and not negative."""
    try:
        counts = whole_numbers(values, "counts", np.int64)
    except ConfigError as error:
        raise DataError(f"{source}: {error}") from error
    if counts.min(initial=0) < 0:
        raise DataError(f"{source}: has a count of {counts.min()}; counts must not be negative")
    return counts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text("utf-8"))
            named = content if isinstance(content, dict) else {"": content}
            return {str(name): np.array(value) for name, value in named.items()}
        except (OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read as expert counts: {error}") from error
    return {"": read_npy_file(path)} if path.suffix == ".npy" else read_npz_file(path)


def write_counts(path: str | Path, counts: ExpertCounts) -> None:
    """Counts as .npz (an int64 [layers, E] array a group) or .json (an object of nested lists)."""
    path = Path(path)
    named = dict(zip(counts.groups, counts.counts, strict=True))
    if path.suffix == ".json":
        text = json.dumps({name: matrix.tolist() for name, matrix in named.items()})
        write_atomically(path, text.encode())
        return
    check(path.suffix == ".npz", "path", str(path), "must end in .npz or .json")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **named)
    write_atomically(path, buffer.getvalue())
