import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, trace_of

from moeworks.analyse.change import change_over_training, common_experts, overlap
from moeworks.errors import ConfigError
from moeworks.trace import RoutingTrace, TraceHeader


def at_step(trace: RoutingTrace, step: int) -> RoutingTrace:
    header = TraceHeader(**vars(trace.header) | {"step": step})
    return RoutingTrace.from_blocks(header, list(trace.blocks()))


@given(st.integers(0, 99), st.integers(1, 5))
def test_common_experts_against_sets(seed, k):
    left, right = random_ids(np.random.default_rng(seed), 20, 2, 6, k).transpose(1, 0, 2)
    expected = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(left, right, strict=True)]
    assert common_experts(left, right, 9).tolist() == expected


def test_overlap_by_hand():
    left = trace_of([[[0, 1]], [[2, 3]], [[0, 1]], [[0, 2]]], 4, document=[0, 0, 1, 1])
    right = trace_of([[[1, 0]], [[0, 1]], [[0, 3]], [[0, 2]]], 4, document=[0, 0, 1, 1])
    found = overlap(left, right)
    assert found.overlap.estimate.tolist() == [(1 + 0 + 0.5 + 1) / 4]
    assert found.overlap.documents == 2
    assert found.overlap.low[0] <= 0.625 <= found.overlap.high[0]
    assert found.same_first.tolist() == [0.5]
    loads = np.array([3, 2, 2, 1]) / 8, np.array([4, 2, 1, 1]) / 8
    assert found.chance == pytest.approx([2 * (loads[0] * loads[1]).sum()])


def test_overlap_with_itself_and_with_chance():
    ids = random_ids(np.random.default_rng(0), 4000, 2, 8, 2)
    trace = trace_of(ids, 8, document=np.arange(4000) // 10)
    assert overlap(trace, trace).overlap.estimate.tolist() == [1, 1]
    other = trace_of(ids[::-1], 8, document=np.arange(4000) // 10)
    found = overlap(trace, other)
    np.testing.assert_allclose(found.overlap.estimate, found.chance, atol=0.02)
    assert (found.overlap.low < found.chance).all()
    assert (found.chance < found.overlap.high).all()


def test_saturation_and_churn():
    """The first expert is settled at once, the second moves at every step."""
    steps = [[[[0, 1]], [[1, 2]]], [[[0, 2]], [[1, 3]]], [[[0, 3]], [[1, 0]]], [[[3, 0]], [[0, 1]]]]
    traces = [at_step(trace_of(ids, 4), 10 * i) for i, ids in enumerate(steps)]
    found = change_over_training(traces)
    assert found.steps == (0, 10, 20, 30)
    assert found.saturation.ravel().tolist() == [0.5, 0.5, 1, 1]
    assert found.churn.ravel().tolist() == [0.5, 0.5, 0]
    loads = [[1, 2, 1, 0], [1, 1, 1, 1], [2, 1, 0, 1]]
    moved = [np.abs(np.subtract(b, a)).sum() / 8 for a, b in itertools.pairwise(loads)]
    assert found.load_shift.ravel() == pytest.approx([*moved, 0])


def test_steps_are_numbered_where_unknown():
    trace = trace_of([[[0, 1]]], 4)
    assert change_over_training([trace, trace]).steps == (0, 1)
    with pytest.raises(ConfigError, match="traces = 1: must be at least 2"):
        change_over_training([trace])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (trace_of([[[0, 1]], [[0, 1]]], 5), "num_experts = 5: must be those of the other trace, 4"),
        (trace_of([[[0, 1]], [[0, 1]]], 4, layers=[3]), r"layers = \(3,\)"),
        (trace_of([[[0, 1]]], 4), "tokens = 1: must be 2"),
        (trace_of([[[0, 1]], [[0, 1]]], 4, token_id=[1, 2]), "tokens.token_id = 'different'"),
        (trace_of([[[0, 1]], [[0, 1]]], 4, position=[0, 2]), "tokens.position = 'different'"),
    ],
)
def test_other_tokens(other, message):
    with pytest.raises(ConfigError, match=message):
        overlap(trace_of([[[0, 1]], [[0, 1]]], 4), other)
