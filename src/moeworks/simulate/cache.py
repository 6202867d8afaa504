"""An expert cache: which experts stay in fast memory, and what the misses cost.

A step is one token in one layer; it needs K experts at once. Those in the cache are hits, the others are
loaded into a buffer beside it. After the step the policy chooses which of the experts in cache and buffer
stay, at most `capacity` of them. So every policy has the same room, an expert may be used without being
kept, and Belady's choice is the best that any policy could do.

    lru          the most recently used stay
    lfu          the most often used so far stay, of equals the more recent
    static       the most often used of the whole trace (or of another one) are there from the start and stay
    least-stale  see _LeastStale; differs from lru only in the global scope
    belady       those whose next use is nearest stay (Belady 1966); nobody can know, so it is a bound
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moeworks.errors import check
from moeworks.simulate.global_cache import simulate_global
from moeworks.trace import ExpertCounts, RoutingTrace, count_experts

Policy = Literal["lru", "lfu", "static", "least-stale", "belady"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Scope = Literal["layer", "global"]


@dataclass(frozen=True, eq=False)
class CacheTable:
    """One policy with one capacity on one trace."""

    policy: Policy
    scope: Scope
    capacity: int
    """Experts: of each layer, or of all layers together in the global scope."""
    layers: tuple[int, ...]
    top_k: int
    misses: np.ndarray
    """int64 [l, K + 1]: steps of each layer by how many of their K experts were missing."""

    @property
    def hit_rate(self) -> np.ndarray:
        """float [l]: share of needed experts that were in the cache. Caches start empty (static: filled)."""
        missing = (self.misses * np.arange(self.top_k + 1)).sum(axis=1)
        return 1 - missing / np.maximum(self.misses.sum(axis=1) * self.top_k, 1)

    @property
    def total_hit_rate(self) -> float:
        """Over all layers, which have equally many steps."""
        return float(self.hit_rate.mean())


def simulate_cache(
    trace: RoutingTrace,
    policy: Policy,
    capacity: int,
    *,
    scope: Scope = "layer",
    frequencies: RoutingTrace | None = None,
) -> CacheTable:
    """Hits and misses of a cache over the tokens in the order of the trace.

    Args:
        trace: the routing; contexts follow each other, as one request after the other.
        policy: one of POLICIES.
        capacity: experts that stay, in each layer or (global) of all layers.
        scope: a cache of its own for each layer, or one for all.
        frequencies: for static, a trace to take the frequencies from; None is `trace` itself, which
        flatters it.

    Raises ConfigError for a capacity that is negative or more than there are.
    """
    trace.require_full_slots("a cache")
    header = trace.header
    most = header.num_experts * (len(header.layers) if scope == "global" else 1)
    check(0 <= capacity <= most, "capacity", capacity, f"must lie between 0 and {most} experts")
    ids = np.stack([trace.ids(layer) for layer in header.layers], axis=1)  # [T, l, K]
    if policy == "static":
        kept = most_frequent(count_experts(frequencies or trace), capacity, scope)
        missing = np.stack([~kept[place][ids[:, place]] for place in range(ids.shape[1])], axis=1).sum(axis=2)
    elif scope == "layer":
        missing = _simulate_layers(ids, policy, capacity, header.num_experts)
    else:
        missing = simulate_global(ids, policy, capacity, header.num_experts)
    k = header.top_k
    table = np.stack([np.bincount(column, minlength=k + 1) for column in missing.T])
    return CacheTable(policy, scope, capacity, header.layers, k, table)


def static_hit_rate(counts: ExpertCounts, capacity: int, scope: Scope = "layer") -> np.ndarray:
    """float [l]: hit rate of the static cache from a load matrix, which is all that it depends on."""
    total = counts.total()
    kept = most_frequent(counts, capacity, scope)
    return (total * kept).sum(axis=1) / np.maximum(total.sum(axis=1), 1)


def most_frequent(counts: ExpertCounts, capacity: int, scope: Scope) -> np.ndarray:
    """bool [l, E]: the `capacity` experts with the highest counts, of each layer or of all."""
    total = counts.total()
    flat = total.reshape(1, -1) if scope == "global" else total
    order = np.argsort(-flat, axis=1, kind="stable")[:, :capacity]
    kept = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(kept, order, True, axis=1)
    return kept.reshape(total.shape)


def _simulate_layers(ids: np.ndarray, policy: Policy, capacity: int, num_experts: int) -> np.ndarray:
    """int64 [T, l]: missing experts of each step, with a cache a layer; all layers take a token at once."""
    count, layers, k = ids.shape
    rows = np.arange(layers)[:, None]
    value = np.full((layers, num_experts), -np.inf)  # the higher, the rather it stays
    used = np.zeros((layers, num_experts), np.int64)
    cached = np.zeros((layers, num_experts), np.bool_)
    missing = np.zeros((count, layers), np.int64)
    upcoming = next_uses(ids, num_experts) if policy == "belady" else None
    rank = np.arange(k) / (2 * k)  # of one step's experts the better ranked are the more recent
    for t in range(count):
        now = ids[t].astype(np.int64)
        missing[t] = k - cached[rows, now].sum(axis=1)
        if upcoming is not None:
            value[rows, now] = -upcoming[t]
        elif policy == "lfu":
            used[rows, now] += 1
            value[rows, now] = used[rows, now] + (t - rank) / (count + 1)
        else:
            value[rows, now] = t - rank
        cached[rows, now] = True
        if capacity < num_experts:
            candidates = np.where(cached, value, -np.inf)
            out = np.argpartition(-candidates, capacity, axis=1)[:, capacity:]
            cached[rows, out] = False
    return missing


def next_uses(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [T, l, K]: the token at which each expert is needed next in its layer; T when never again."""
    count, layers, k = ids.shape
    result = np.full(ids.shape, count, np.int64)
    for layer in range(layers):
        flat = ids[:, layer].reshape(-1).astype(np.int64)
        order = np.argsort(flat, kind="stable")
        same = flat[order][1:] == flat[order][:-1]
        following = np.full(len(flat), count, np.int64)
        following[order[:-1][same]] = order[1:][same] // k
        result[:, layer] = following.reshape(count, k)
    return result


@dataclass(frozen=True)
class Link:
    """What a miss costs."""

    expert_bytes: float
    """Size of one expert."""
    bytes_per_second: float
    """From slow to fast memory."""
    compute_seconds: float = 0.0
    """Time that one layer takes for one token when all its experts are there."""

    def __post_init__(self) -> None:
        check(self.expert_bytes > 0, "expert_bytes", self.expert_bytes, "must be positive")
        check(self.bytes_per_second > 0, "bytes_per_second", self.bytes_per_second, "must be positive")
        check(self.compute_seconds >= 0, "compute_seconds", self.compute_seconds, "must not be negative")


@dataclass(frozen=True)
class CacheCost:
    """Per token, over all layers of the trace."""

    bytes_loaded: float
    stall_seconds: float
    """Loads begin when the router has chosen, and the layer waits for them."""
    stall_seconds_overlapped: float
    """The bound of perfect prefetching: loads of a layer run while the layer before computes."""
    tokens_per_second: float
    """With the first kind of stall; infinite when nothing takes time."""


def cache_cost(table: CacheTable, link: Link) -> CacheCost:
    """Bytes and stalls of a simulated cache, exactly, from how many experts the steps missed."""
    steps = np.maximum(table.misses.sum(axis=1, keepdims=True), 1)
    share = table.misses / steps  # [l, K + 1]
    load = np.arange(table.top_k + 1) * link.expert_bytes / link.bytes_per_second
    stall = float((share * load).sum())
    overlapped = float((share * np.maximum(load - link.compute_seconds, 0)).sum())
    total = stall + link.compute_seconds * len(table.layers)
    return CacheCost(
        bytes_loaded=stall * link.bytes_per_second,
        stall_seconds=stall,
        stall_seconds_overlapped=overlapped,
        tokens_per_second=1 / total if total > 0 else float("inf"),
    )
