import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, trace_of

from moeworks.analyse.consistency import (
    drift,
    following,
    jensen_shannon,
    overlap_by_lag,
    repeats,
    run_lengths,
)
from moeworks.errors import ConfigError


def test_repeats_by_hand():
    """Two sequences: pairs 0-1 share one of two experts, 1-2 both, 3-4 none."""
    ids = [[[0, 1]], [[0, 2]], [[2, 0]], [[2, 0]], [[1, 3]]]
    found = repeats(trace_of(ids, 4, sequence=[0, 0, 0, 1, 1]))
    assert found.repeat_rate.estimate.tolist() == pytest.approx([(0.5 + 1 + 0) / 3])
    load = np.array([4, 2, 3, 1]) / 10
    assert found.chance == pytest.approx([2 * (load**2).sum()])
    # Of the first document's three pairs of tokens: 0-1 and 0-2 share one, 1-2 two; the second's share none.
    assert found.document_chance == pytest.approx([(2 * (1 + 1 + 2) / 6 + 0) / 3])
    assert found.first_repeat_rate == pytest.approx([1 / 3])
    assert found.first_chance == pytest.approx([(4 + 4 + 1) / 25])
    # Runs: 0 (3 tokens), 1, 2 (2 tokens), then 2, 0, 1, 3.
    assert found.mean_run == pytest.approx([10 / 7])
    used = load * 2
    assert found.run_chance == pytest.approx([10 / (load * 10 * (1 - used)).sum()])
    assert run_lengths(trace_of(ids, 4, sequence=[0, 0, 0, 1, 1]), 0).tolist() == [0, 5, 1, 1]


def test_constant_and_independent_routing():
    same = trace_of(np.tile([[[3, 1]]], (50, 1, 1)), 4)
    assert repeats(same).repeat_rate.estimate.tolist() == [1]
    assert repeats(same).mean_run.tolist() == [50]
    ids = random_ids(np.random.default_rng(0), 20_000, 1, 8, 2)
    found = repeats(trace_of(ids, 8, document=np.arange(20_000) // 100))
    assert found.repeat_rate.low < found.chance < found.repeat_rate.high
    np.testing.assert_allclose(found.mean_run, found.run_chance, rtol=0.02)
    np.testing.assert_allclose(found.first_repeat_rate, found.first_chance, atol=0.01)


@given(st.integers(0, 99))
def test_run_lengths_against_a_walk(seed):
    trace = random_trace(seed, top_k=3)
    ids, starts = trace.ids(1).tolist(), [True, *(~following(trace)).tolist()]
    runs: list[int] = []
    going: dict[int, int] = {}
    for chosen, start in zip(ids, starts, strict=True):
        ended = [expert for expert in going if start or expert not in chosen]
        runs += [going.pop(expert) for expert in ended]
        for expert in chosen:
            going[expert] = going.get(expert, 0) + 1
    runs += going.values()
    assert run_lengths(trace, 1).tolist() == np.bincount(runs).tolist()
    assert np.mean(runs) == pytest.approx(repeats(trace).mean_run[1])


def test_topics_repeat_without_being_near():
    """Documents have experts of their own, and their tokens no order: all repeats are those of documents."""
    rng = np.random.default_rng(0)
    document = np.arange(6000) // 100
    ids = (document % 4 * 4)[:, None] + np.argsort(rng.random((6000, 4)), axis=1)[:, :2]
    found = repeats(trace_of(ids[:, None], 16, document=document, sequence=document))
    assert found.chance == pytest.approx([1 / 8], abs=0.01)
    assert found.document_chance == pytest.approx([0.5], abs=0.01)
    assert found.repeat_rate.estimate == pytest.approx(found.document_chance, abs=0.015)


def test_neighbours_need_positions_that_follow():
    trace = trace_of([[[0, 1]]] * 4, 4, sequence=[0, 0, 0, 1], position=[0, 1, 3, 4])
    assert following(trace).tolist() == [True, False, False]
    with pytest.raises(ConfigError, match="two that follow each other"):
        repeats(trace_of([[[0, 1]]] * 2, 4, sequence=[0, 1]))


def test_lags():
    """A period of 3 repeats at lags 3 and 6 and nowhere else."""
    ids = np.array([[0, 1], [2, 3], [4, 5]] * 6)[:, None]
    found = overlap_by_lag(trace_of(ids, 6), (1, 2, 3, 6, 100))
    assert found.overlap[0, :4].tolist() == [0, 0, 1, 1]
    assert np.isnan(found.overlap[0, 4])
    assert found.chance == pytest.approx([2 / 6])
    one = overlap_by_lag(random_trace(5), (1,))
    np.testing.assert_allclose(one.overlap[:, 0], repeats(random_trace(5)).repeat_rate.estimate)


def test_drift_appears_where_it_is_planted():
    rng = np.random.default_rng(0)
    ids = random_ids(rng, 40 * 256, 1, 8, 2)
    steady = drift(trace_of(ids, 8, sequence=np.repeat(np.arange(40), 256)), bins=4)
    assert steady.edges.tolist() == [0, 32, 64, 128, 256]
    assert steady.tokens.tolist() == [40 * n for n in (32, 32, 64, 128)]
    np.testing.assert_allclose(steady.divergence, steady.divergence_null, atol=0.004)
    late = np.tile(np.arange(256) >= 128, 40)
    ids[late] = np.argsort(rng.random((int(late.sum()), 1, 3)), axis=2)[:, :, :2]
    moved = drift(trace_of(ids, 8, sequence=np.repeat(np.arange(40), 256)), bins=4)
    assert moved.divergence[0, 3] > 0.2
    assert moved.divergence[0, 3] > 20 * moved.divergence_null[0, 3]


def test_drift_needs_two_bins_and_one_position_has_none():
    with pytest.raises(ConfigError, match="bins = 1"):
        drift(random_trace(), bins=1)
    assert np.isnan(drift(trace_of([[[0, 1]]], 4)).divergence).all()


def test_jensen_shannon():
    left, right = np.array([[1, 0], [2, 2], [3, 0]]), np.array([[0, 5], [1, 1], [1, 0]])
    assert jensen_shannon(left, right) == pytest.approx([1, 0, 0], abs=1e-12)
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    middle = (p + q) / 2
    expected = (np.sum(p * np.log2(p / middle)) + np.sum(q * np.log2(q / middle))) / 2
    assert jensen_shannon(p, q) == pytest.approx(expected)
