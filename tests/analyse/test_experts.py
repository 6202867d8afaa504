"""The figures of single experts, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from traces import trace_of

from moeworks.analyse.experts import expert_table
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns

NAN = float("nan")


def test_by_hand():
    ids = np.array([[0, 1], [1, 0], [1, 2], [0, 2]])[:, None]
    weights = np.array([[3, 1], [2, 2], [1, 0], [1, 3]])[:, None]
    found = expert_table(trace_of(ids, 4, weights=weights, sequence=np.array([0, 0, 0, 1])))
    assert found.assignments.tolist() == [[3, 3, 2, 0]]
    np.testing.assert_allclose(found.load, [[1.5, 1.5, 1, 0]])
    # The largest weights are those of 0, 1 (the first of two equal ones), 1 and 2, whatever their slots.
    np.testing.assert_allclose(found.first, [[1 / 3, 2 / 3, 1 / 2, NAN]])
    # Of the two steps inside sequence 0, expert 0 survives one of two, expert 1 both; 2 never begins one.
    np.testing.assert_allclose(found.keeps, [[1 / 2, 1, NAN, NAN]])
    np.testing.assert_allclose(found.weight, [[1.5 / 3, 1.75 / 3, 0.75 / 2, NAN]])
    assert found.entropy is None
    assert found.margin is None
    assert found.dropped is None


def test_scores_and_drops():
    header = TraceHeader(num_experts=2, top_k=1, layers=(5,), fields=("kept", "entropy", "margin"))
    columns = LayerColumns(
        np.array([[0], [0], [1]], np.uint8),
        kept=np.array([[True], [False], [True]]),
        entropy=np.array([0, np.log(2), np.log(2)], np.float16),
        margin=np.array([1, 3, np.inf], np.float16),
    )
    found = expert_table(RoutingTrace.from_blocks(header, [TraceBlock(token_columns(3), (columns,))]))
    np.testing.assert_allclose(found.entropy, [[0.5, 1]], rtol=1e-3)
    np.testing.assert_allclose(found.margin, [[2, NAN]])  # an infinite margin is no distance
    np.testing.assert_allclose(found.dropped, [[0.5, 0]])
    assert found.layers == (5,)


def test_ranks_and_order_of_slots():
    """Which slot an expert stands in changes how often it is first, and nothing else."""
    ids = np.array([[0, 1], [2, 0], [1, 2]])[:, None]
    one, other = (expert_table(trace_of(part, 3)) for part in (ids, ids[:, :, ::-1]))
    np.testing.assert_allclose(one.first + other.first, 1)
    np.testing.assert_allclose(replace(other, first=one.first).keeps, one.keeps)
    assert one.assignments.sum() == pytest.approx(6)
