"""Caches against plain loops over sets, by hand, and against bounds that hold for any trace."""

from itertools import product

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import random_ids, random_trace, real_file, real_trace, trace_of

from moeworks.errors import ConfigError
from moeworks.simulate.cache import (
    POLICIES,
    CacheTable,
    Link,
    cache_cost,
    next_uses,
    simulate_cache,
    static_hit_rate,
)
from moeworks.simulate.synthetic import synthetic_trace
from moeworks.trace import ExpertCounts, count_experts


def misses_by_loop(steps: list[list[int]], policy: str, capacity: int) -> list[int]:
    """One cache over steps of experts, as cache.py defines it, with lists and sets."""
    cached: list[int] = []
    uses: dict[int, int] = {}
    used_at: dict[int, float] = {}
    missing = []
    for t, needed in enumerate(steps):
        missing.append(sum(expert not in cached for expert in needed))
        for rank, expert in enumerate(needed):
            uses[expert] = uses.get(expert, 0) + 1
            used_at[expert] = t - rank / 100

        def next_use(expert: int, t: int = t) -> int:
            later = [s for s in range(t + 1, len(steps)) if expert in steps[s]]
            return later[0] if later else len(steps)

        key = {
            "lru": lambda expert: -used_at[expert],
            "lfu": lambda expert: (-uses[expert], -used_at[expert]),
            "belady": next_use,
        }[policy]
        cached = sorted(dict.fromkeys([*cached, *needed]), key=key)[:capacity]
    return missing


@settings(max_examples=200)
@given(st.integers(0, 999), st.sampled_from(["lru", "lfu", "belady"]), st.integers(0, 8), st.booleans())
def test_against_a_loop(seed, policy, capacity, is_global):
    trace = random_trace(seed, tokens=30, layers=2, top_k=2)
    ids = np.stack([trace.ids(layer) for layer in (0, 1)], axis=1).astype(int)
    table = simulate_cache(trace, policy, capacity, scope="global" if is_global else "layer")
    if is_global:
        steps = [(row + 8 * layer).tolist() for token in ids for layer, row in enumerate(token)]
        missing = np.array(misses_by_loop(steps, policy, capacity)).reshape(30, 2)
    else:
        missing = np.stack([misses_by_loop(ids[:, i].tolist(), policy, capacity) for i in (0, 1)], axis=1)
    # Ties (of experts that are needed next at one step, or never again) do not matter.
    histogram = [np.bincount(column, minlength=3).tolist() for column in missing.T]
    assert table.misses.tolist() == histogram


@given(st.integers(0, 99), st.sampled_from(POLICIES), st.integers(0, 8))
def test_one_layer_is_the_same_in_both_scopes(seed, policy, capacity):
    trace = random_trace(seed, layers=1, top_k=3)
    tables = [simulate_cache(trace, policy, capacity, scope=scope) for scope in ("layer", "global")]
    assert tables[0].misses.tolist() == tables[1].misses.tolist()


def best_possible(steps: list[tuple[int, ...]], capacity: int) -> int:
    """Fewest misses of any policy that knows the future, by trying every set that could stay."""
    states = {frozenset(): 0}
    for needed in steps:
        following: dict[frozenset, int] = {}
        for cached, missed in states.items():
            cost = missed + sum(expert not in cached for expert in needed)
            pool = cached | set(needed)
            for mask in product((False, True), repeat=len(pool)):
                stays = frozenset(expert for expert, kept in zip(sorted(pool), mask, strict=True) if kept)
                if len(stays) <= capacity:
                    following[stays] = min(following.get(stays, cost), cost)
        states = following
    return min(states.values())


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(0, 4))
def test_belady_is_the_optimum(seed, capacity):
    ids = random_ids(np.random.default_rng(seed), 9, 1, 5, 2)
    table = simulate_cache(trace_of(ids, 5), "belady", capacity)
    steps = [tuple(row) for row in ids[:, 0].tolist()]
    assert (table.misses @ [0, 1, 2]).sum() == best_possible(steps, capacity)


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(0, 24), st.sampled_from(["layer", "global"]))
def test_no_policy_beats_belady(seed, capacity, scope):
    trace = random_trace(seed, layers=3, top_k=2)
    capacity = min(capacity, 8) if scope == "layer" else capacity
    best = simulate_cache(trace, "belady", capacity, scope=scope).total_hit_rate
    for policy in ("lru", "lfu", "least-stale"):
        assert simulate_cache(trace, policy, capacity, scope=scope).total_hit_rate <= best + 1e-12


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_no_room_and_all_the_room(policy, scope):
    trace = random_trace(1)
    assert simulate_cache(trace, policy, 0, scope=scope).total_hit_rate == 0
    everything = simulate_cache(trace, policy, 8 if scope == "layer" else 24, scope=scope)
    first_uses = sum(len(np.unique(trace.ids(layer))) for layer in trace.header.layers)
    total = trace.num_tokens * 3 * 2
    assert everything.total_hit_rate == pytest.approx(1 if policy == "static" else 1 - first_uses / total)


def test_cycle_where_lru_fails_and_least_stale_does_not():
    """Three layers that always use the same two experts, room for two layers' worth: LRU never hits."""
    ids = np.tile(np.array([[[0, 1]] * 3]), (50, 1, 1))
    rates = {p: simulate_cache(trace_of(ids, 4), p, 4, scope="global").total_hit_rate for p in POLICIES}
    assert rates["lru"] == 0
    assert rates["least-stale"] == pytest.approx(rates["belady"], abs=0.05)
    assert rates["least-stale"] > 0.6


def test_least_stale_order_by_hand():
    """Room for 2, three layers. Token 0: layers 0 and 1 stay, and layer 2, whose turn comes last, does not.

    Token 1: another expert of layer 0 comes, and the stale one of that layer goes; layer 1 hits; layer 2
    misses.
    """
    ids = np.array([[[0], [0], [0]], [[1], [0], [0]]])
    table = simulate_cache(trace_of(ids, 3), "least-stale", 2, scope="global")
    assert table.misses.tolist() == [[0, 2], [1, 1], [0, 2]]


def test_static_by_hand_and_from_another_trace():
    trace = trace_of([[[0, 1]], [[0, 2]], [[0, 1]], [[3, 1]]], 4)
    assert simulate_cache(trace, "static", 1).total_hit_rate == 3 / 8
    assert simulate_cache(trace, "static", 2).total_hit_rate == 6 / 8
    other = trace_of([[[3, 2]]], 4)
    assert simulate_cache(trace, "static", 2, frequencies=other).total_hit_rate == 2 / 8


def test_static_hit_rates_of_the_real_trace_in_sql(tmp_path):
    """The share of load that the most frequent experts have, from the arrays alone."""
    trace = real_trace()
    connection = duckdb.connect()
    for capacity in (8, 16, 32):
        rates = []
        for layer in (1, 9, 26):
            column = {"e": trace.ids(layer).reshape(-1).astype(int)}
            connection.register("a", pd.DataFrame(column))
            ((rate,),) = connection.sql(
                f"""select sum(n) / {trace.num_tokens * 6} from
                (select count(*) n from a group by e order by n desc limit {capacity})"""
            ).fetchall()
            rates.append(rate)
        found = simulate_cache(trace, "static", capacity).hit_rate
        assert found[[0, 8, 25]] == pytest.approx(rates)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_static_hit_rate_needs_only_the_counts(scope):
    trace = random_trace(4)
    found = static_hit_rate(count_experts(trace), 3, scope)
    assert found == pytest.approx(simulate_cache(trace, "static", 3, scope=scope).hit_rate)


def test_static_hit_rates_of_published_counts():
    """OLMoE, Mixtral and an upcycled model with dead experts, by sorting each layer's counts."""
    with np.load(real_file("traces/expert_counts_real.npz"), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name, matrix in arrays.items():
        counts = ExpertCounts(("all",), tuple(range(len(matrix))), matrix[None])
        half = matrix.shape[1] // 2
        by_hand = [sum(sorted(row.tolist(), reverse=True)[:half]) / row.sum() for row in matrix]
        assert static_hit_rate(counts, half) == pytest.approx(by_hand), name
    rate = {
        name: static_hit_rate(
            ExpertCounts(("a",), tuple(range(len(arrays[name]))), arrays[name][None]), 4
        ).mean()
        for name in ("mixtral8x7b__c4", "dropup__NU-8x1.5B__c4")
    }
    assert rate["mixtral8x7b__c4"] < 0.56  # nearly balanced: half of the experts have half of the load
    assert rate["dropup__NU-8x1.5B__c4"] > 0.75  # dead experts make a cache easy


def test_published_ranking_on_the_real_trace():
    """Routing along a text repeats, so recency beats frequency, and both are far from the optimum."""
    trace = real_trace()
    trace = trace.where(trace.tokens.sequence % 16 == 0)
    rates = {policy: simulate_cache(trace, policy, 16).total_hit_rate for policy in POLICIES}
    assert rates["static"] < rates["lru"] == rates["least-stale"] < rates["belady"]


def test_lru_of_independent_uniform_tokens_hits_by_its_share():
    """C of E experts in the cache: each needed one is there with chance C / E (K = 1)."""
    trace = synthetic_trace(tokens=20_000, layers=1, num_experts=16, top_k=1)
    for policy in ("lru", "lfu", "static"):
        assert simulate_cache(trace, policy, 4).total_hit_rate == pytest.approx(0.25, abs=0.015)


def test_next_uses():
    ids = np.array([[[0, 1]], [[2, 1]], [[0, 2]]])
    assert next_uses(ids, 3).tolist() == [[[2, 1]], [[2, 3]], [[3, 3]]]


def test_cost_by_hand():
    """Two layers, 10 tokens; an expert takes 10 ms to load, a layer 15 ms to compute."""
    table = CacheTable("lru", "layer", 3, (0, 1), 2, np.array([[5, 3, 2], [10, 0, 0]]))
    cost = cache_cost(table, Link(expert_bytes=1e6, bytes_per_second=1e8, compute_seconds=0.015))
    assert cost.bytes_loaded == pytest.approx(0.7e6)
    assert cost.stall_seconds == pytest.approx(0.007)
    assert cost.stall_seconds_overlapped == pytest.approx(0.2 * 0.005)
    assert cost.tokens_per_second == pytest.approx(1 / (0.007 + 0.03))
    assert table.hit_rate.tolist() == [1 - 7 / 20, 1]
    free = CacheTable("lru", "layer", 3, (0,), 1, np.array([[10, 0]]))
    assert cache_cost(free, Link(1, 1)).tokens_per_second == float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulate_cache(random_trace(), "lru", 9), "capacity = 9: must lie between 0 and 8"),
        (lambda: simulate_cache(random_trace(), "lru", -1), "capacity = -1"),
        (lambda: simulate_cache(random_trace(), "lru", 25, scope="global"), "between 0 and 24"),
        (lambda: Link(0, 1), "expert_bytes = 0"),
        (lambda: Link(1, 0), "bytes_per_second = 0"),
        (lambda: Link(1, 1, -1), "compute_seconds = -1"),
    ],
)
def test_rules(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
