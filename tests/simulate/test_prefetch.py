import numpy as np
import pytest
from traces import random_trace, trace_of

from moeworks.errors import ConfigError
from moeworks.simulate.prefetch import GUESSES, prefetch_recall
from moeworks.simulate.synthetic import synthetic_trace


def test_frequency_by_hand():
    """The first sequence says 0 and 1; of the second's needs 0 is half, 2 and 3 the rest."""
    trace = trace_of([[[0, 1]], [[0, 1]], [[0, 2]], [[0, 3]]], 4, sequence=[0, 0, 1, 1])
    found = prefetch_recall(trace, "frequency", (1, 2, 4))
    assert found.recall.tolist() == [[0.5, 0.5, 1]]


def test_previous_token():
    """A sequence that stays with its experts: all but its first token are foreseen."""
    ids = np.concatenate([np.tile([[[0, 1]]], (10, 1, 1)), np.tile([[[2, 3]]], (10, 1, 1))])
    trace = trace_of(ids, 6, sequence=np.repeat([0, 1], 10))
    assert prefetch_recall(trace, "previous-token", (2,)).recall.tolist() == [[0.9]]
    assert prefetch_recall(trace, "frequency", (2,)).recall.tolist() == [[0]]


def test_previous_layer():
    """The second layer is a function of the first, which is random."""
    rng = np.random.default_rng(0)
    first = rng.integers(6, size=400)
    ids = np.stack([first, (first * 5 + 1) % 6], axis=1)[:, :, None]
    trace = trace_of(ids, 6, sequence=np.arange(400) // 200)
    recall = prefetch_recall(trace, "previous-layer", (1,)).recall[:, 0]
    assert recall[1] == 1
    assert recall[0] < 0.35


@pytest.mark.parametrize("guess", GUESSES)
def test_independent_uniform_routing_is_guessed_by_share(guess):
    trace = synthetic_trace(tokens=8000, layers=2, num_experts=10, top_k=2)
    recall = prefetch_recall(trace, guess, (2, 5, 10)).recall
    np.testing.assert_allclose(recall, [[0.2, 0.5, 1]] * 2, atol=0.02)


def test_rules():
    with pytest.raises(ConfigError, match=r"budgets = \(0,\)"):
        prefetch_recall(random_trace(), "frequency", (0,))
    with pytest.raises(ConfigError, match="sequences = 1: must be at least 2"):
        prefetch_recall(trace_of([[[0, 1]]], 4), "frequency", (1,))
