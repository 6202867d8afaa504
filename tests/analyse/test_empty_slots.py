"""Tokens with different numbers of experts: empty slots change nothing, what varies is counted as it is."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_trace

from moeworks.analyse import analyse_trace
from moeworks.analyse.change import change_over_training, overlap, overlap_share
from moeworks.analyse.coactivation import coactivation, count_pairs
from moeworks.analyse.consistency import run_lengths
from moeworks.analyse.experts import expert_table
from moeworks.analyse.information import conditional_entropy
from moeworks.analyse.neighbours import neighbours
from moeworks.analyse.vocabulary import top_tokens
from moeworks.errors import ConfigError
from moeworks.simulate.cache import simulate_cache
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns


def with_spare_slot(trace: RoutingTrace) -> RoutingTrace:
    """The same trace with one more slot, which is always empty."""
    header = replace(trace.header, top_k=trace.header.top_k + 1, empty_slots=True)

    def wider(values, fill):
        return None if values is None else np.pad(values, ((0, 0), (0, 1)), constant_values=fill)

    def layer(columns):
        ids = wider(columns.ids, trace.header.num_experts)
        weights, kept = wider(columns.weights, 0), wider(columns.kept, False)
        return replace(columns, ids=ids, weights=weights, kept=kept)

    blocks = [TraceBlock(b.tokens, tuple(layer(x) for x in b.layers)) for b in trace.blocks()]
    return RoutingTrace.from_blocks(header, blocks)


def flat(value, prefix=""):
    """The arrays and numbers of nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}/{key}")
    elif value is not None:
        yield prefix, value


def assert_equal(got, want) -> None:
    for (name, a), (_, b) in zip(flat(asdict(got)), flat(asdict(want)), strict=True):
        if isinstance(b, np.ndarray) and b.dtype.kind == "f":
            if a.shape != b.shape:  # one column a slot
                assert (a[..., b.shape[-1] :] == 0).all(), name
                a = a[..., : b.shape[-1]]
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_slot_that_is_always_empty_changes_no_metric():
    trace = random_trace(layers=2)
    assert_equal(analyse_trace(with_spare_slot(trace)), analyse_trace(trace))


def test_nor_comparisons_of_traces():
    one, other = random_trace(layers=2, seed=0), random_trace(layers=2, seed=1)
    (own,), (others,) = one.blocks(), other.blocks()
    two = RoutingTrace.from_blocks(one.header, [TraceBlock(own.tokens, others.layers)])
    spare = with_spare_slot(one), with_spare_slot(two)
    assert_equal(change_over_training(spare), change_over_training([one, two]))
    assert_equal(overlap(*spare), overlap(one, two))


def test_nor_the_tables_of_a_report():
    trace = random_trace(layers=2, tokens=300)
    spare = with_spare_slot(trace)
    assert_equal(expert_table(spare), expert_table(trace))
    assert_equal(top_tokens(spare), top_tokens(trace))
    got, want = (neighbours(coactivation(each)) for each in (spare, trace))
    for name in ("edges", "lifts", "expected"):
        for a, b in zip(getattr(got, name), getattr(want, name), strict=True):
            np.testing.assert_allclose(a, b, err_msg=name)


@given(st.data())
def test_by_hand(data):
    experts, slots, tokens = 5, 4, 12
    one_set = st.lists(st.integers(0, experts - 1), unique=True, max_size=slots)
    sets = data.draw(st.lists(one_set, min_size=tokens, max_size=tokens))
    ids = np.array([row + [experts] * (slots - len(row)) for row in sets], np.uint8)
    shifted = np.roll(ids, 1, axis=0)
    for got, a, b in zip(overlap_share(ids, shifted, experts), sets, [sets[-1], *sets], strict=False):
        size = len(a) + len(b)
        assert got == pytest.approx(2 * len(set(a) & set(b)) / size if size else 1.0)
    pairs = count_pairs(ids, experts)
    assert pairs.tolist() == [
        [sum(i in row and j in row for row in sets) for j in range(experts)] for i in range(experts)
    ]
    condition = np.arange(tokens) % 2
    cells = [[sum(e in row for row in sets[c::2]) for e in range(experts)] for c in (0, 1)]
    total = sum(map(sum, cells))
    want = sum(n * np.log2(sum(row) / n) for row in cells for n in row if n) / max(total, 1)
    assert conditional_entropy(ids, condition, experts) == pytest.approx(want)
    header = TraceHeader(num_experts=experts, top_k=slots, layers=(0,), empty_slots=True)
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(tokens), (LayerColumns(ids),))])
    lengths = run_lengths(trace, 0)
    assert (lengths * np.arange(len(lengths))).sum() == total
    # A token without experts has no first choice that it could share.
    assert overlap(trace, trace).same_first[0] == np.mean([bool(row) for row in sets])


def test_simulations_that_need_equally_many_experts_say_so():
    spare = with_spare_slot(random_trace(layers=2))
    with pytest.raises(ConfigError, match=r"trace.empty_slots = True: a cache needs equally many"):
        simulate_cache(spare, "lru", 2)
