"""Two traces side by side: the same tokens where their texts agree, and their distributions otherwise."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.change import overlap_of_rows
from moeworks.analyse.consistency import jensen_shannon
from moeworks.analyse.intervals import Interval
from moeworks.analyse.load import LoadTable, load_table, relative_load, shares
from moeworks.trace import ExpertCounts, RoutingTrace


@dataclass(frozen=True, eq=False)
class Comparison:
    """What differs between a trace (left) and another (right), in the layers that both have."""

    layers: tuple[int, ...]
    """In both, ascending; all tables but the loads have a row for each."""
    left_load: LoadTable
    """Load of all layers of the left trace."""
    right_load: LoadTable
    divergence: np.ndarray | None
    """float [l]: Jensen-Shannon divergence of the loads in bits; None where the numbers of experts
    differ."""
    moved: np.ndarray | None
    """float [l]: half the sum of |load - load|, the share of the work that other experts do."""
    difference: np.ndarray | None
    """float [l, E]: relative load on the right minus that on the left."""
    matched: int
    """Tokens of sequences that are the same in both."""
    overlap: Interval | None
    """[l]: mean |E_left ∩ E_right| / K over matched tokens; None where there are none, or where
    experts or top-k differ."""
    chance: np.ndarray | None
    """float [l]: the overlap of two routers with these loads that ignore the token."""
    same_first: np.ndarray | None
    """float [l]: share of matched tokens whose first expert is the same."""
    domains: tuple[str, ...]
    """Domains that both have."""
    left_domains: np.ndarray | None
    """float [l, E, D]: N_{e,D} / N_D of the left trace; None where the numbers of experts differ."""
    right_domains: np.ndarray | None
    """float [l, E, D]."""


def compare_traces(
    left: RoutingTrace, right: RoutingTrace, left_counts: ExpertCounts, right_counts: ExpertCounts
) -> Comparison:
    """Compare two traces, given their counts by domain. Nothing need be alike; what does not fit is None."""
    layers = tuple(n for n in left.header.layers if n in right.header.layers)
    alike = left.header.num_experts == right.header.num_experts and bool(layers)
    rows = matching_rows(left, right)
    found = None
    if alike and len(rows[0]) and left.header.top_k == right.header.top_k:
        found = overlap_of_rows(left, right, layers, rows)
    totals = [_take(counts, layers) for counts in (left_counts, right_counts)] if alike else None
    loads = None if totals is None else [relative_load(each) for each in totals]
    both = tuple(name for name in left_counts.groups if name in right_counts.groups)
    by_domain = (
        [_by_domain(counts, layers, both) for counts in (left_counts, right_counts)]
        if alike
        else [None, None]
    )
    return Comparison(
        layers=layers,
        left_load=load_table(left_counts),
        right_load=load_table(right_counts),
        divergence=None if totals is None else jensen_shannon(*totals),
        moved=None if totals is None else np.abs(shares(totals[0]) - shares(totals[1])).sum(axis=1) / 2,
        difference=None if loads is None else loads[1] - loads[0],
        matched=len(rows[0]),
        overlap=None if found is None else found.overlap,
        chance=None if found is None else found.chance,
        same_first=None if found is None else found.same_first,
        domains=both,
        left_domains=by_domain[0],
        right_domains=by_domain[1],
    )


def matching_rows(left: RoutingTrace, right: RoutingTrace) -> tuple[np.ndarray, np.ndarray]:
    """Places of the same tokens in both: those of sequences with equal token ids and positions.

    A text that occurs several times is matched in order. Where either has no token ids, all tokens match if
    sequences and positions are equal throughout, and none otherwise.
    """
    a, b = left.tokens, right.tokens
    if len(a) == 0 or len(b) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if (a.token_id < 0).any() or (b.token_id < 0).any():
        same = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("sequence", "position"))
        rows = np.arange(len(a) if same else 0)
        return rows, rows
    waiting: dict[bytes, list[np.ndarray]] = {}
    for rows in reversed(_sequences(b.sequence)):
        waiting.setdefault(_key(b.token_id[rows], b.position[rows]), []).append(rows)
    pairs = [
        (rows, found.pop())
        for rows in _sequences(a.sequence)
        if (found := waiting.get(_key(a.token_id[rows], a.position[rows])))
    ]
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sides = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    return sides[0], sides[1]


def _sequences(sequence: np.ndarray) -> list[np.ndarray]:
    starts = np.flatnonzero(np.r_[True, sequence[1:] != sequence[:-1]])
    return np.split(np.arange(len(sequence)), starts[1:])


def _key(token_id: np.ndarray, position: np.ndarray) -> bytes:
    return token_id.tobytes() + position.tobytes()


def _take(counts: ExpertCounts, layers: tuple[int, ...]) -> np.ndarray:
    return counts.total()[[counts.layers.index(n) for n in layers]]


def _by_domain(counts: ExpertCounts, layers: tuple[int, ...], domains: tuple[str, ...]) -> np.ndarray:
    """float [l, E, D]: the share of each domain's work in a layer, N_{e,D} / N_D with N_D in assignments."""
    places = [counts.layers.index(n) for n in layers]
    groups = [counts.groups.index(name) for name in domains]
    return np.moveaxis(shares(counts.counts[groups][:, places]), 0, 2)
