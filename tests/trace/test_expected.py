"""Closed forms against Monte Carlo, and the published figures they give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.errors import ConfigError
from moeworks.trace.expected import accepted_tokens, distinct_by_load, distinct_uniform, expected_devices


def draws(rng: np.random.Generator, tokens: int, experts: int, k: int) -> np.ndarray:
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 6))
def test_distinct_experts(seed, k, batch):
    rng = np.random.default_rng(seed)
    chosen = draws(rng, 4000 * batch, 12, k).reshape(4000, -1)
    found = np.mean([len(set(row)) for row in chosen.tolist()])
    assert distinct_uniform(12, k, np.array([batch]))[0] == pytest.approx(found, rel=0.02)
    assert distinct_by_load(np.full(12, k / 12), np.array([batch]))[0] == pytest.approx(found, rel=0.02)


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([1, 2, 4, 8]))
def test_distinct_devices(seed, k, devices):
    rng = np.random.default_rng(seed)
    chosen = draws(rng, 6000, 16, k) // (16 // devices)
    found = np.mean([len(set(row)) for row in chosen.tolist()])
    assert expected_devices(16, k, devices) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_distinct_devices_with_a_limit(limit):
    """Devices first, then experts on them."""
    rng = np.random.default_rng(0)
    score = rng.random((20_000, 4, 4))
    allowed = np.argsort(rng.random((20_000, 4)), axis=1)[:, :limit]
    score[np.arange(20_000)[:, None], allowed] += 1
    device = np.argsort(-score.reshape(-1, 16), axis=1)[:, :3] // 4
    found = np.mean([len(set(row)) for row in device.tolist()])
    assert expected_devices(16, 3, 4, limit) == pytest.approx(found, rel=0.02)


def test_published_figures():
    """DeepSeek-V3 on 8 nodes (often given as 5.30), V2 on 8 devices, and V3's experts of a batch of 4."""
    assert expected_devices(256, 8, 8) == pytest.approx(5.2947, abs=5e-5)
    assert expected_devices(160, 6, 8) == pytest.approx(4.46, abs=0.005)
    assert expected_devices(160, 6, 8, 3) <= 3
    assert distinct_uniform(256, 8, np.array([1, 4])) == pytest.approx([8, 30.5], abs=0.05)


def test_accepted_tokens():
    assert accepted_tokens(np.array([0, 1, 2]), 0.5).tolist() == [1, 1.5, 1.75]
    assert accepted_tokens(np.array([3]), 1.0).tolist() == [4]
    assert accepted_tokens(np.array([3]), 0.0).tolist() == [1]
    rng = np.random.default_rng(0)
    taken = (rng.random((50_000, 4)) < 0.7).cumprod(axis=1).sum(axis=1) + 1
    assert accepted_tokens(np.array([4]), 0.7)[0] == pytest.approx(taken.mean(), rel=0.01)


def test_rules():
    with pytest.raises(ConfigError, match="num_devices = 3"):
        expected_devices(16, 2, 3)
    with pytest.raises(ConfigError, match="max_devices = 9"):
        expected_devices(16, 2, 8, 9)
    with pytest.raises(ConfigError, match="hold fewer than top_k = 4"):
        expected_devices(16, 4, 8, 1)
    with pytest.raises(ConfigError, match="acceptance = -1"):
        accepted_tokens(np.array([1]), -1)
