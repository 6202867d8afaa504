"""Texts with the routing of their tokens: which are taken, and that they are those of the trace."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_block, random_trace, trace_of

from moeworks.analyse.sample import sample_texts
from moeworks.errors import ConfigError
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns


def test_longest_of_each_domain_in_turn():
    sequence = np.repeat(np.arange(4), [1, 3, 2, 4])
    domain = np.array([0, 0, 0, 1])[sequence]
    trace = trace_of(np.zeros((10, 1, 1), int), 2, sequence=sequence, domain=domain, domains=("a", "b"))
    found = sample_texts(trace, texts=2)
    assert found.sequences.tolist() == [1, 3]
    assert found.domains == ("a", "b")
    assert found.starts.tolist() == [0, 3]
    assert sample_texts(trace, texts=3).sequences.tolist() == [1, 2, 3]
    assert sample_texts(trace, texts=2, length=2).starts.tolist() == [0, 2]


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 30))
def test_rows_are_those_of_the_trace(seed, texts, length):
    trace = random_trace(seed)
    found = sample_texts(trace, texts=texts, length=length, seed=seed)
    ends = [*found.starts[1:], len(found.token_ids)]
    for number, start, end in zip(found.sequences, found.starts, ends, strict=True):
        rows = np.flatnonzero(trace.tokens.sequence == number)[: end - start]
        assert end - start <= length
        np.testing.assert_array_equal(found.token_ids[start:end], trace.tokens.token_id[rows])
        for place, layer in enumerate(trace.header.layers):
            own = trace.layer(layer).take(rows)
            order = np.argsort(-own.weights, axis=1, kind="stable")
            np.testing.assert_array_equal(found.ids[place, start:end], np.take_along_axis(own.ids, order, 1))
    np.testing.assert_allclose(found.weights.sum(axis=2), 1)
    assert (np.diff(found.weights, axis=2) <= 0).all()


def test_budget_of_assignments():
    trace = random_trace(tokens=400)
    assert sample_texts(trace, texts=4, length=100, assignments=6 * 80).ids.size <= 6 * 80
    with pytest.raises(ConfigError, match="texts"):
        sample_texts(trace, texts=0)


def test_runners_up_by_hand():
    header = TraceHeader(num_experts=4, top_k=2, layers=(0,), fields=("logits",))
    logits = np.array([[4, 3, 2, 1], [1, 2, 5, 4]], np.float16)
    columns = LayerColumns(np.array([[0, 1], [2, 1]], np.uint8), logits=logits)
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(2), (columns,))])
    found = sample_texts(trace)
    assert found.runners_up.tolist() == [[[2, 3], [3, 0]]]
    assert found.behind.tolist() == [[[-1, -2], [2, -1]]]  # 3 was passed over: it is ahead of the chosen 1


def test_runners_up_beside_empty_slots():
    header = TraceHeader(num_experts=3, top_k=2, layers=(0,), fields=("logits",), empty_slots=True)
    columns = LayerColumns(np.array([[1, 3], [3, 3]], np.uint8), logits=np.array([[0, 2, 1]] * 2, np.float16))
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(2), (columns,))])
    found = sample_texts(trace)
    assert found.runners_up.tolist() == [[[2], [1]]]
    np.testing.assert_array_equal(found.behind, [[[-1], [np.nan]]])


def test_columns_that_are_missing():
    header = TraceHeader(num_experts=4, top_k=2, layers=(0, 1), fields=("entropy",))
    found = sample_texts(RoutingTrace.from_blocks(header, [random_block(header, 5)]))
    assert found.weights is found.margin is found.runners_up is found.behind is None
    assert found.entropy.shape == (2, 5)
