"""Does the routing of one token say something about the next? Repeats, runs, and drift along a text."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.change import common_experts, overlap_share
from moeworks.analyse.distributions import rank_p_value
from moeworks.analyse.intervals import (
    Interval,
    document_codes,
    ratio_interval,
    stack_intervals,
    sum_by_document,
)
from moeworks.analyse.load import load_entropy, shares
from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.block import filled_slots
from moeworks.trace.counts import count_groups


@dataclass(frozen=True, eq=False)
class RepeatTable:
    """How often a token keeps the experts of the token before it in its sequence."""

    layers: tuple[int, ...]
    repeat_rate: Interval
    """[l]: mean |E_t ∩ E_{t+1}| / K, with its interval over documents."""
    chance: np.ndarray
    """float [l]: K sum_e load_e^2, the rate when tokens choose by these loads and independently."""
    document_chance: np.ndarray
    """float [l]: the rate of two different tokens of a document, sum_e N_e (N_e - 1) / (n (n - 1) K) for one
    of n tokens, the mean over pairs of neighbours. What repeat_rate has above it is due to being near, not to
    the topic."""
    near: Interval
    """One number: repeat_rate - document_chance, the mean over layers, with its interval over documents."""
    topical: Interval
    """One number: document_chance minus the rate of two tokens of different documents, the mean over layers,
    with its interval over documents; NaN for a single document."""
    first_repeat_rate: np.ndarray
    """float [l]: share of tokens whose first expert is that of the token before (Jiang et al. 2024, Mixtral,
    section 5, table 5)."""
    first_chance: np.ndarray
    """float [l]: sum_e p_e^2 of the loads p of first experts."""
    mean_run: np.ndarray
    """float [l]: mean number of tokens in a row that use an expert, over all runs of all experts."""
    run_chance: np.ndarray
    """float [l]: sum_e N_e / sum_e N_e (1 - N_e / T), the same for independent tokens in one long text."""


def repeats(trace: RoutingTrace) -> RepeatTable:
    """Repeat rates against chance and run lengths.

    Neighbours are tokens of one sequence at positions that follow each other. Raises ConfigError when there
    are none.
    """
    tokens = trace.tokens
    follows = following(trace)
    check(bool(follows.any()), "tokens", trace.num_tokens, "must hold two that follow each other")
    document, documents = document_codes(trace)
    codes = document[1:][follows]
    pairs = sum_by_document(np.ones(len(codes)), codes, documents)
    experts = trace.header.num_experts
    intervals, rows = [], []
    near, topical = np.zeros((2, documents))
    for layer in trace.header.layers:
        ids = trace.ids(layer)
        before, after = ids[:-1][follows], ids[1:][follows]
        shared = sum_by_document(overlap_share(before, after, experts), codes, documents)
        intervals.append(ratio_interval(shared, pairs))
        by_document = count_groups(ids, document, documents, experts).astype(np.float64)
        length = np.bincount(document, minlength=documents)
        own = _two_of_a_document(by_document, length)
        near += shared - own * pairs
        topical += (own - _two_of_different_documents(by_document, length)) * pairs
        counts = by_document.sum(axis=0)
        k = counts.sum() / max(len(tokens), 1)
        first = shares(_counts(ids[:, :1], experts))
        used = counts / max(len(tokens), 1)
        # A run begins with every use that does not continue one.
        runs = counts.sum() - common_experts(before, after, experts).sum()
        same_first = (before[:, 0] == after[:, 0]) & filled_slots(before[:, 0], experts)
        rows.append(
            (
                k * (shares(counts) ** 2).sum(),
                (own * pairs).sum() / pairs.sum(),
                same_first.mean(),
                (first**2).sum(),
                counts.sum() / max(runs, 1),
                counts.sum() / max((counts * (1 - used)).sum(), 1e-12),
            )
        )
    chance, document_chance, *others = np.array(rows).T
    depth = trace.num_layers
    return RepeatTable(
        trace.header.layers,
        stack_intervals(intervals),
        chance,
        document_chance,
        ratio_interval(near / depth, pairs),
        ratio_interval(topical / depth, pairs if documents > 1 else np.zeros(documents)),
        *others,
    )


def _two_of_a_document(counts: np.ndarray, length: np.ndarray) -> np.ndarray:
    """float [documents]: mean overlap, over K, of two different tokens of a document.

    From counts [documents, E] and tokens [documents].
    """
    k = counts.sum(axis=1) / np.maximum(length, 1)
    together = (counts * (counts - 1)).sum(axis=1) / np.maximum(length * (length - 1), 1)
    return together / np.where(k > 0, k, 1)


def _two_of_different_documents(counts: np.ndarray, length: np.ndarray) -> np.ndarray:
    """float [documents]: mean overlap, over K, of a token of the document and one of any other."""
    k = counts.sum(axis=1) / np.maximum(length, 1)
    elsewhere = counts.sum(axis=0) - counts
    tokens = length * (length.sum() - length)
    together = (counts * elsewhere).sum(axis=1) / np.maximum(tokens, 1)
    return together / np.where(k > 0, k, 1)


def following(trace: RoutingTrace) -> np.ndarray:
    """bool [T - 1]: whether token t + 1 follows token t in a sequence."""
    tokens = trace.tokens
    same = tokens.sequence[1:] == tokens.sequence[:-1]
    return same & (tokens.position[1:] == tokens.position[:-1] + 1)


def _counts(ids: np.ndarray, num_experts: int) -> np.ndarray:
    return count_groups(ids, np.zeros(len(ids), np.int64), 1, num_experts)[0]


def run_lengths(trace: RoutingTrace, layer: int) -> np.ndarray:
    """int64 [n]: runs by length; place r holds how many runs of r tokens in a row an expert of `layer` had.

    Place 0 is 0; the sum of r times place r is the number of assignments.
    """
    ids = trace.ids(layer).astype(np.int64)
    broken = np.r_[True, ~following(trace)] if len(ids) else np.zeros(0, np.bool_)
    # A gap in the clock wherever a token does not follow the one before it.
    clock = np.arange(len(ids)) + np.cumsum(broken)
    span = int(clock[-1]) + 2 if len(ids) else 1
    uses = np.sort((ids * span + clock[:, None])[filled_slots(ids, trace.header.num_experts)])
    starts = np.flatnonzero(np.diff(uses, prepend=-2) != 1)
    return np.bincount(np.diff(np.r_[starts, len(uses)]), minlength=1)


@dataclass(frozen=True, eq=False)
class LagTable:
    """Overlap of tokens that are `lags` positions apart in their sequence."""

    layers: tuple[int, ...]
    lags: tuple[int, ...]
    overlap: np.ndarray
    """float [l, lags]: mean |E_t ∩ E_{t+lag}| / K; NaN where no sequence is that long."""
    chance: np.ndarray
    """float [l]: as in RepeatTable."""


def overlap_by_lag(trace: RoutingTrace, lags: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)) -> LagTable:
    """How fast the routing of a text forgets: overlap over distance, down to chance or not."""
    tokens, experts = trace.tokens, trace.header.num_experts
    apart = []
    for lag in lags:
        check(lag >= 1, "lags", lags, "must be at least 1")
        same = tokens.sequence[lag:] == tokens.sequence[:-lag]
        apart.append(np.flatnonzero(same & (tokens.position[lag:] == tokens.position[:-lag] + lag)))
    overlap = np.full((trace.num_layers, len(lags)), np.nan)
    chance = np.zeros(trace.num_layers)
    for place, layer in enumerate(trace.header.layers):
        ids = trace.ids(layer)
        counts = _counts(ids, experts)
        chance[place] = counts.sum() / max(len(tokens), 1) * (shares(counts) ** 2).sum()
        for column, (lag, early) in enumerate(zip(lags, apart, strict=True)):
            if len(early):
                overlap[place, column] = overlap_share(ids[early], ids[early + lag], experts).mean()
    return LagTable(trace.header.layers, lags, overlap, chance)


@dataclass(frozen=True, eq=False)
class DriftTable:
    """How load changes with the position in the context."""

    layers: tuple[int, ...]
    edges: np.ndarray
    """int [bins + 1]: bin b holds positions edges[b] to edges[b + 1] - 1."""
    tokens: np.ndarray
    """int64 [bins]."""
    divergence: np.ndarray
    """float [l, bins]: Jensen-Shannon divergence (Lin 1991) in bits between the bin's load and that of all
    other bins; 0 is equal, 1 disjoint. NaN where there is only one bin."""
    divergence_null: np.ndarray
    """float [l, bins]: its mean when the positions of each sequence are rotated at random: sampling alone."""
    excess: np.ndarray
    """float [l, bins]: divergence above divergence_null, in standard deviations of the rotated ones."""
    p_value: float
    """Share of the rotations whose largest excess of all layers and bins is as large; NaN for one bin."""


def drift(
    trace: RoutingTrace, *, bins: int = 8, least: int = 500, rotations: int = 59, seed: int = 0
) -> DriftTable:
    """Long-context drift in up to `bins` ranges of positions, each about twice as wide as the one before.

    Ranges with fewer than `least` tokens are joined with the next. The null rotates the positions inside each
    sequence by a random amount, which keeps what neighbours share.
    """
    check(bins >= 2, "bins", bins, "must be at least 2")
    tokens, experts = trace.tokens, trace.header.num_experts
    edges = _position_edges(tokens.position, bins, least)
    rng = np.random.default_rng(seed)
    actual = _bin(tokens.position, edges)
    rotated = [_bin(_rotated(tokens.position, tokens.sequence, rng), edges) for _ in range(rotations)]
    shape = (trace.num_layers, len(edges) - 1)
    found, mean, excess = (np.full(shape, np.nan) for _ in range(3))
    largest = np.full(1 + rotations, -np.inf)
    for place, layer in enumerate(trace.header.layers):
        ids = trace.ids(layer)
        tables = [count_groups(ids, places, shape[1], experts) for places in (actual, *rotated)]
        each = np.stack([_against_rest(table) for table in tables])
        # The actual positions are one of the rotations, so that all are treated alike.
        spread = each.std(axis=0)
        scaled = (each - each.mean(axis=0)) / np.where(spread > 0, spread, 1)
        largest = np.fmax(largest, np.fmax.reduce(scaled, axis=1))
        found[place], excess[place] = each[0], scaled[0]
        mean[place] = each[1:].mean(axis=0) if rotations else np.nan
    p_value = rank_p_value(largest[0], largest[1:]) if np.isfinite(largest[0]) else float("nan")
    number = np.bincount(actual, minlength=shape[1])
    return DriftTable(trace.header.layers, edges, number, found, mean, excess, p_value)


def _position_edges(position: np.ndarray, bins: int, least: int) -> np.ndarray:
    """int [bins + 1]: ends of the ranges of positions, of which each holds at least `least` tokens."""
    longest = int(position.max()) + 1 if len(position) else 1
    wanted = np.unique(np.r_[0, np.ceil(longest / 2.0 ** np.arange(bins - 1, -1, -1))].astype(np.int64))
    below = np.searchsorted(np.sort(position), wanted)
    edges, done = [0], 0
    for edge, number in zip(wanted[1:-1], below[1:-1], strict=True):
        if number - done >= least and len(position) - number >= least:
            edges.append(int(edge))
            done = number
    return np.array([*edges, longest])


def _bin(position: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges, position, side="right") - 1


def _rotated(position: np.ndarray, sequence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of each sequence rotated by a random number of places."""
    _, code, size = np.unique(sequence, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    start = np.cumsum(size) - size
    place = np.arange(len(position)) - start[code[order]]
    turned = start[code[order]] + (place + rng.integers(size)[code[order]]) % size[code[order]]
    result = np.empty_like(position)
    result[order] = position[order][turned]
    return result


def _against_rest(counts: np.ndarray) -> np.ndarray:
    """float [bins] of counts [bins, E]."""
    rest = counts.sum(axis=0) - counts
    valid = (counts.sum(axis=1) > 0) & (rest.sum(axis=1) > 0)
    return np.where(valid, jensen_shannon(counts, rest), np.nan)


def jensen_shannon(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float [...] bits between the distributions of counts [..., E]: H((p + q) / 2) - (H(p) + H(q)) / 2."""
    p, q = shares(left), shares(right)
    nats = load_entropy((p + q) / 2) - (load_entropy(p) + load_entropy(q)) / 2
    return np.asarray(np.maximum(nats, 0) / np.log(2))
