"""How the routing of the same tokens differs between passes, and changes over training."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.intervals import (
    Interval,
    document_codes,
    ratio_interval,
    stack_intervals,
    sum_by_document,
)
from moeworks.analyse.load import shares
from moeworks.errors import check
from moeworks.trace import RoutingTrace, count_experts
from moeworks.trace.block import count_filled, filled_slots


@dataclass(frozen=True, eq=False)
class OverlapTable:
    """Agreement of two passes over the same tokens."""

    layers: tuple[int, ...]
    overlap: Interval
    """[l]: mean |E_a ∩ E_b| / K, with its interval over documents."""
    chance: np.ndarray
    """float [l]: K sum_e load_a,e load_b,e, the overlap of two routers with these loads that ignore the
    token."""
    same_first: np.ndarray
    """float [l]: share of tokens whose first expert is the same."""


def overlap(left: RoutingTrace, right: RoutingTrace) -> OverlapTable:
    """Agreement of two traces of the same tokens: engines, precisions, steps, quantisations.

    Raises ConfigError when the traces are not of the same tokens, layers
    and experts.
    """
    _check_alike(left, right)
    everything = np.arange(left.num_tokens)
    return overlap_of_rows(left, right, left.header.layers, (everything, everything))


def overlap_of_rows(
    left: RoutingTrace,
    right: RoutingTrace,
    layers: tuple[int, ...],
    rows: tuple[np.ndarray, np.ndarray],
) -> OverlapTable:
    """Agreement on the tokens at `rows` of each trace, at least one, in `layers` of both."""
    used, codes = np.unique(document_codes(left)[0][rows[0]], return_inverse=True)
    documents = len(used)
    tokens = sum_by_document(np.ones(len(codes)), codes, documents)
    intervals, first, chance, experts = [], [], [], left.header.num_experts
    for layer in layers:
        a, b = left.ids(layer)[rows[0]], right.ids(layer)[rows[1]]
        common = overlap_share(a, b, experts)
        intervals.append(ratio_interval(sum_by_document(common, codes, documents), tokens))
        same = (a[:, 0] == b[:, 0]) & filled_slots(a[:, 0], experts)
        first.append(same.mean())
        loads = [shares(np.bincount(ids.reshape(-1), minlength=experts)[:experts]) for ids in (a, b)]
        chance.append(count_filled(a, experts).mean() * (loads[0] * loads[1]).sum())
    return OverlapTable(layers, stack_intervals(intervals), np.array(chance), np.array(first))


def common_experts(left: np.ndarray, right: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [T]: how many experts ids [T, K] and ids [T, K'] have in common; empty slots are none."""
    # Slot by slot over all tokens: rows of K are too short for numpy to be quick along them.
    others = np.ascontiguousarray(right.T)
    common = np.zeros(len(left), np.int64)
    for own in np.ascontiguousarray(left.T):
        found = np.zeros(len(left), np.bool_)
        for other in others:
            found |= own == other
        common += found & filled_slots(own, num_experts)
    return common


def overlap_share(left: np.ndarray, right: np.ndarray, num_experts: int) -> np.ndarray:
    """float [T]: 2 |A ∩ B| / (|A| + |B|) of a token's experts, which is |A ∩ B| / K where all have K.

    Two tokens without experts agree.
    """
    sizes = count_filled(left, num_experts) + count_filled(right, num_experts)
    common = common_experts(left, right, num_experts)
    return np.where(sizes > 0, 2 * common / np.maximum(sizes, 1), 1.0)


@dataclass(frozen=True, eq=False)
class ChangeTable:
    """S traces of the same tokens at growing training steps."""

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    saturation: np.ndarray
    """float [S, l]: mean |E(step) ∩ E(final)| / K (OLMoE, Muennighoff et al. 2024, section 4.1)."""
    churn: np.ndarray
    """float [S - 1, l]: mean share of experts that a token has left by the next step, 1 - overlap."""
    load_shift: np.ndarray
    """float [S - 1, l]: half the sum of |load(next) - load|, the share of load that moved."""


def change_over_training(traces: Sequence[RoutingTrace]) -> ChangeTable:
    """Saturation and churn of checkpoints, in the order given; the last one is the final one.

    Steps are those of the headers, or 0, 1, ... where one has none. Raises ConfigError for fewer than two
    traces, and for traces of different tokens.
    """
    check(len(traces) >= 2, "traces", len(traces), "must be at least 2")
    for trace in traces[1:]:
        _check_alike(traces[0], trace)
    known = [trace.header.step for trace in traces]
    steps = tuple(i if step is None or None in known else step for i, step in enumerate(known))
    layers, experts = traces[0].header.layers, traces[0].header.num_experts
    saturation = np.zeros((len(traces), len(layers)))
    churn = np.zeros((len(traces) - 1, len(layers)))
    for place, layer in enumerate(layers):
        ids = [trace.ids(layer) for trace in traces]
        saturation[:, place] = [overlap_share(part, ids[-1], experts).mean() for part in ids]
        churn[:, place] = [1 - overlap_share(a, b, experts).mean() for a, b in itertools.pairwise(ids)]
    loads = np.stack([shares(count_experts(trace).total()) for trace in traces])
    shift = np.abs(np.diff(loads, axis=0)).sum(axis=2) / 2
    return ChangeTable(steps, layers, saturation, churn, shift)


def _check_alike(left: RoutingTrace, right: RoutingTrace) -> None:
    for name in ("layers", "num_experts"):
        a, b = getattr(left.header, name), getattr(right.header, name)
        check(a == b, name, b, f"must be those of the other trace, {a}")
    check(right.num_tokens == left.num_tokens, "tokens", right.num_tokens, f"must be {left.num_tokens}")
    for name in ("token_id", "sequence", "position"):
        same = np.array_equal(getattr(left.tokens, name), getattr(right.tokens, name))
        check(same, f"tokens.{name}", "different", "must be those of the other trace: the same texts")
