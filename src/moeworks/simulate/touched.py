"""Experts that a decode step must read: a batch of sequences, or the drafts of speculative decoding."""

from dataclasses import dataclass

import numpy as np

from moeworks.errors import check
from moeworks.trace import RoutingTrace, count_experts
from moeworks.trace.expected import accepted_tokens, distinct_by_load, distinct_uniform


@dataclass(frozen=True, eq=False)
class TouchedTable:
    """Distinct experts of some tokens that are computed together, a column for each number of tokens."""

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    distinct: np.ndarray
    """float [l, n]: mean over samples; NaN where the trace has not that many together."""
    by_load: np.ndarray
    """float [l, n]: distinct experts of independent tokens with this load, sum_e 1 - (1 - N_e/T)^B."""
    uniform: np.ndarray
    """float [n]: distinct experts of independent tokens and even load, E (1 - (1 - K/E)^B)."""


def batch_experts(
    trace: RoutingTrace, batch_sizes: tuple[int, ...], *, samples: int = 1000, seed: int = 0
) -> TouchedTable:
    """Batched decoding: a random token of each of B random sequences, all different.

    Raises ConfigError for a size below 1.
    """
    rng = np.random.default_rng(seed)
    _, starts, lengths = np.unique(trace.tokens.sequence, return_index=True, return_counts=True)
    groups = []
    for size in batch_sizes:
        check(size >= 1, "batch_sizes", batch_sizes, "must be at least 1")
        if size > len(starts):
            groups.append(None)
            continue
        chosen = np.argpartition(rng.random((samples, len(starts))), size - 1, axis=1)[:, :size]
        groups.append(starts[chosen] + rng.integers(lengths[chosen]))
    return _touched(trace, batch_sizes, groups)


def window_experts(
    trace: RoutingTrace, windows: tuple[int, ...], *, samples: int = 5000, seed: int = 0
) -> TouchedTable:
    """Tokens in a row of one sequence, as a speculation step verifies them; windows at random."""
    rng = np.random.default_rng(seed)
    sequence = trace.tokens.sequence
    groups = []
    for size in windows:
        check(size >= 1, "windows", windows, "must be at least 1")
        last = len(sequence) - size + 1
        starts = np.flatnonzero(sequence[:last] == sequence[size - 1 :]) if last > 0 else np.zeros(0, int)
        if len(starts) > samples:
            starts = np.sort(rng.choice(starts, samples, replace=False))
        groups.append(starts[:, None] + np.arange(size) if len(starts) else None)
    return _touched(trace, windows, groups)


def _touched(trace: RoutingTrace, sizes: tuple[int, ...], groups: list[np.ndarray | None]) -> TouchedTable:
    trace.require_full_slots("counting distinct experts")
    header = trace.header
    distinct = np.full((len(header.layers), len(sizes)), np.nan)
    for place, layer in enumerate(header.layers):
        ids = trace.ids(layer)
        for column, rows in enumerate(groups):
            if rows is not None:
                distinct[place, column] = distinct_in_rows(ids[rows].reshape(len(rows), -1)).mean()
    used = count_experts(trace).total() / max(trace.num_tokens, 1)
    number = np.array(sizes)
    return TouchedTable(
        layers=header.layers,
        tokens=sizes,
        distinct=distinct,
        by_load=np.stack([distinct_by_load(row, number) for row in used]),
        uniform=distinct_uniform(header.num_experts, header.top_k, number),
    )


def distinct_in_rows(values: np.ndarray) -> np.ndarray:
    """int64 [n]: different values in each row of values [n, m]."""
    ordered = np.sort(values, axis=1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)


@dataclass(frozen=True, eq=False)
class SpeculationTable:
    """Speculative decoding with g draft tokens, when a step's time is that of reading its experts."""

    drafts: tuple[int, ...]
    touched: TouchedTable
    """Distinct experts of windows of g + 1 tokens."""
    accepted: np.ndarray
    """float [n]: tokens that one verification yields."""
    cost: np.ndarray
    """float [n]: expert bytes of one verification over those of one token, the mean of all layers."""
    gain: np.ndarray
    """float [n]: accepted / cost: expert bytes saved per token; below 1 speculation reads more than it
    saves."""


def speculation(
    trace: RoutingTrace, drafts: tuple[int, ...], acceptance: float, *, samples: int = 5000, seed: int = 0
) -> SpeculationTable:
    """What drafts are worth where decoding is bound by reading experts.

    `acceptance` is the chance that a draft token is accepted, each alike and independent. The draft model's
    own cost, attention and shared experts are left out.
    """
    check(bool(drafts) and min(drafts) >= 0, "drafts", drafts, "must not be negative")
    touched = window_experts(trace, tuple(g + 1 for g in drafts), samples=samples, seed=seed)
    accepted = accepted_tokens(np.array(drafts), acceptance)
    cost = touched.distinct.mean(axis=0) / trace.header.top_k
    return SpeculationTable(drafts, touched, accepted, cost, accepted / cost)
