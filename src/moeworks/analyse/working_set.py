"""How many different experts some tokens in a row use: what must be in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.load import mean_experts
from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.counts import count_groups
from moeworks.trace.expected import distinct_by_load, distinct_uniform


@dataclass(frozen=True, eq=False)
class WorkingSetTable:
    """Distinct experts in windows of w tokens (Denning 1968), over all windows inside sequences."""

    layers: tuple[int, ...]
    windows: tuple[int, ...]
    """Tokens in a window."""
    number: np.ndarray
    """int64 [windows]: how many windows of each size there are."""
    mean: np.ndarray
    """float [l, windows]: mean number of distinct experts; NaN where no sequence is that long."""
    by_load: np.ndarray
    """float [l, windows]: sum_e 1 - (1 - N_e/T)^w, what independent tokens with this load would use."""
    uniform: np.ndarray
    """float [windows]: E (1 - (1 - K/E)^w), independent tokens and even load."""


def working_sets(
    trace: RoutingTrace, windows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
) -> WorkingSetTable:
    """Mean working sets, exactly, over every window of each size (windows overlap).

    An expert is missing from gap - w + 1 windows of a gap of `gap` tokens without it; counting gaps takes one
    sort a layer instead of a pass over windows.
    """
    check(bool(windows) and min(windows) >= 1, "windows", windows, "must be at least 1")
    tokens, experts = trace.tokens, trace.header.num_experts
    # Where slots may be empty, the mean of all layers.
    k = float(mean_experts(trace).mean()) if trace.header.empty_slots else trace.header.top_k
    first = np.r_[True, tokens.sequence[1:] != tokens.sequence[:-1]] if len(tokens) else np.zeros(0, bool)
    # Sequences on one clock, with a wall of one tick in front of each and at the end.
    clock = np.arange(len(tokens)) + np.cumsum(first)
    walls = np.r_[clock[first] - 1, clock[-1] + 1 if len(tokens) else 0]
    lengths = np.diff(walls) - 1
    sizes = np.array(windows)
    number = np.maximum(lengths[:, None] - sizes + 1, 0).sum(axis=0)
    mean = np.full((trace.num_layers, len(sizes)), np.nan)
    by_load = np.zeros((trace.num_layers, len(sizes)))
    for place, layer in enumerate(trace.header.layers):
        ids = trace.ids(layer)
        missing = np.zeros(len(sizes), np.int64)
        for gaps in _gaps(ids, clock, walls, experts):
            histogram = np.bincount(gaps)
            length = np.arange(len(histogram))
            missing += (histogram[:, None] * np.maximum(length[:, None] - sizes + 1, 0)).sum(axis=0)
        present = number > 0
        mean[place, present] = experts - missing[present] / number[present]
        counts = count_groups(ids, np.zeros(len(ids), np.int64), 1, experts)[0]
        by_load[place] = distinct_by_load(counts / max(len(tokens), 1), sizes)
    return WorkingSetTable(
        trace.header.layers, windows, number, mean, by_load, distinct_uniform(experts, k, sizes)
    )


def _gaps(ids: np.ndarray, clock: np.ndarray, walls: np.ndarray, num_experts: int) -> Iterator[np.ndarray]:
    """For every expert, the lengths of the stretches inside sequences that do not use it."""
    order = np.argsort(ids.reshape(-1), kind="stable")
    ticks = np.repeat(clock, ids.shape[1])[order]
    bounds = np.searchsorted(ids.reshape(-1)[order], np.arange(num_experts + 1))
    for expert in range(num_experts):
        uses = ticks[bounds[expert] : bounds[expert + 1]]
        yield np.diff(np.sort(np.concatenate([uses, walls]), kind="stable")) - 1
