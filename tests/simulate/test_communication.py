import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, real_trace, trace_of

from moeworks.errors import ConfigError
from moeworks.simulate.communication import bytes_per_token, communication, keep_devices


def test_by_hand():
    """Experts 0 and 1 on device 0, 2 and 3 on device 1, 4 and 5 on device 2."""
    weights = np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.7, 0.3]], [[0.5, 0.5]]])
    trace = trace_of([[[0, 1]], [[0, 2]], [[5, 3]], [[2, 3]]], 6, weights=weights)
    free = communication(trace, 3)
    assert free.devices.tolist() == [1.5]
    assert free.histogram.tolist() == [[0, 2, 2, 0]]
    assert free.lost_assignments.tolist() == [0]
    limited = communication(trace, 3, max_devices=1)
    assert limited.devices.tolist() == [1]
    assert limited.lost_assignments.tolist() == [2 / 8]
    assert limited.lost_weight[0] == pytest.approx((0.4 + 0.3) / 4, abs=1e-3)


def test_bytes():
    found = communication(trace_of([[[0, 1]], [[0, 2]]], 4), 2)
    assert bytes_per_token(found, 100).tolist() == [1.5 * 0.5 * 300]
    assert bytes_per_token(found, 100, dispatch_bytes=2, combine_bytes=2).tolist() == [1.5 * 0.5 * 400]
    assert bytes_per_token(communication(random_trace(), 1), 100).tolist() == [0, 0, 0]


@given(st.integers(0, 99), st.integers(1, 4))
def test_limit_against_a_loop(seed, limit):
    rng = np.random.default_rng(seed)
    device = random_ids(rng, 10, 1, 8, 4)[:, 0] // 2
    weights = rng.random(device.shape)
    kept = keep_devices(device, weights, 4, limit)
    for row in range(10):
        total = {d: weights[row][device[row] == d].sum() for d in range(4)}
        best = sorted(total, key=lambda d: (-total[d], d))[:limit]
        assert kept[row].tolist() == [d in best for d in device[row]]


def test_uniform_routing_meets_the_formula():
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((20_000, 1, 32)), axis=2)[:, :, :4]
    found = communication(trace_of(ids, 32), 8)
    assert found.devices[0] == pytest.approx(found.uniform, abs=0.02)


def test_without_weights_the_most_experts_stay():
    found = communication(trace_of([[[0, 2, 3]]], 4), 2, max_devices=1)
    assert found.lost_assignments == pytest.approx([1 / 3])
    assert found.lost_weight is None


def test_limit_that_holds_fewer_than_k():
    found = communication(trace_of([[[0, 2, 4]]], 6), 3, max_devices=1)
    assert (found.devices.tolist(), found.uniform) == ([1], 1)


def test_on_the_real_trace():
    """DeepSeek-V2-Lite is not trained with a limit: 3 of 8 devices cost it a sixth of its weight."""
    trace = real_trace()
    free, limited = communication(trace, 8), communication(trace, 8, max_devices=3)
    assert free.devices.mean() == pytest.approx(free.uniform, abs=0.1)
    assert limited.devices.max() <= 3
    assert 0.1 < limited.lost_weight.mean() < limited.lost_assignments.mean() < 0.3


def test_rules():
    with pytest.raises(ConfigError, match="num_devices = 3: must divide the number of experts, 8"):
        communication(random_trace(), 3)
    with pytest.raises(ConfigError, match="max_devices = 5: must lie between 1 and 4"):
        communication(random_trace(), 4, max_devices=5)
    with pytest.raises(ConfigError, match="d_model = 0"):
        bytes_per_token(communication(random_trace(), 2), 0)
