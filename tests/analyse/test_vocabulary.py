"""The tokens that stand out for an expert, by hand."""

import numpy as np
import pytest
from traces import random_trace, trace_of

from moeworks.analyse.vocabulary import top_tokens
from moeworks.errors import ConfigError


def test_an_expert_that_the_token_id_chooses():
    words = np.array([7] * 40 + [9] * 40)
    found = top_tokens(
        trace_of((words == 9)[:, None, None].astype(int), 3, token_id=words), number=2, min_count=4
    )
    assert found.token_ids[0].tolist() == [[7, -1], [9, -1], [-1, -1]]
    assert found.counts[0].tolist() == [[40, 0], [40, 0], [0, 0]]
    assert found.shares[0].tolist() == [[1, 0], [1, 0], [0, 0]]
    np.testing.assert_allclose(found.knowing[0], [1, 1, np.nan])
    # E[share^2] of 40 drawn of 80 tokens without replacement, half of them the expert's: 1/4 + 1/160 * 40/79.
    np.testing.assert_allclose(found.knowing_null[0], [(1 / 4 + 1 / 316) * 2] * 2 + [np.nan])
    # z = (1 - 1/2) / sqrt(1/316)
    np.testing.assert_allclose(found.z[0, :2, 0], 0.5 * np.sqrt(316))


def test_words_that_mean_nothing_do_not_stand_out():
    """Of 200 experts of 20 traces each token is drawn alike: at most one in twenty traces names one."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(20):
        ids = np.argsort(rng.random((600, 10)), axis=1)[:, None, :2]
        found = top_tokens(trace_of(ids, 10, token_id=rng.integers(20, size=600)), min_count=5)
        named += bool((found.token_ids >= 0).any())
    assert named <= 1


def test_an_expert_that_ignores_the_words():
    """Each token is with each expert half of the time: nothing stands out."""
    words, expert = np.repeat([3, 4], 4), np.tile([0, 1], 4)
    found = top_tokens(trace_of(expert[:, None, None], 2, token_id=words), min_count=1)
    assert (found.token_ids == -1).all()
    np.testing.assert_allclose(found.knowing, 0.5)


def test_rare_tokens_take_no_part():
    words = np.array([1, 1, 1, 2])
    found = top_tokens(trace_of([[[0]], [[0]], [[1]], [[1]]], 2, token_id=words), min_count=2)
    assert 2 not in found.token_ids
    assert found.min_count == 2
    none = top_tokens(trace_of([[[0]], [[1]]], 2, token_id=np.array([1, 2])), min_count=2)
    assert (none.token_ids == -1).all()
    assert np.isnan(none.knowing).all()


def test_best_first():
    found = top_tokens(random_trace(tokens=500), number=5, min_count=1)
    assert (np.diff(found.z, axis=2) <= 0).all()


def test_token_ids_must_be_known():
    with pytest.raises(ConfigError, match=r"token_id"):
        top_tokens(trace_of([[[0]], [[1]]], 2))
