"""Cells side by side: pairs, divergence, and what is missing."""

import numpy as np
import pytest
from lab_records import record

from moeworks.errors import ConfigError
from moeworks.labs.results import Results


def test_differences_are_paired_in_seeds() -> None:
    """Seeds differ by far more than arms do; pairs do not see it."""
    records = [record("a", seed, 2.0 + seed) for seed in range(4)]
    records += [record("b", seed, 2.1 + seed) for seed in range(4)]
    results = Results(records, ["a", "b"], "a")
    difference, alone = results.difference("b"), results.bits("b")
    assert difference is not None and alone is not None
    assert difference.value == pytest.approx(0.1)
    assert difference.high - difference.low < 1e-9
    assert alone.high - alone.low > 1


def test_only_common_seeds_count() -> None:
    records = [record("a", 0, 2.0), record("a", 1, 9.0), record("b", 0, 2.5), record("b", 7, 1.0)]
    difference = Results(records, ["a", "b"], "a").difference("b")
    assert difference is not None
    assert difference.value == pytest.approx(0.5)


def test_divergence() -> None:
    records = [record("a", 0, 2.0), record("a", 1, 2.0), record("b", 0, None), record("b", 1, 2.5)]
    results = Results(records, ["a", "b"], "a")
    assert (results.diverged("a"), results.diverged("b")) == (0, 1)
    difference = results.difference("b")
    assert difference is not None
    assert difference.value == pytest.approx(0.5)
    rate = results.metric("b", "diverged")
    assert rate is not None and rate.value == 0.5


def test_nothing_in_common() -> None:
    results = Results([record("a", 0, None), record("b", 1, 2.0)], ["a", "b", "c"], "a")
    assert results.bits("a") is None
    assert results.difference("b") is None
    assert results.metric("b", "max_vio") is None
    assert results.metric_difference("a", "b", "cpu_seconds") is None
    assert results.by_layer("b", "max_vio") is None
    assert results.arms == ("a", "b")


def test_metrics_by_seed_and_layer() -> None:
    records = [
        record("a", seed, 2.0, {"max_vio": 1.0 + seed}, {"max_vio": [seed, 2.0 + seed]}) for seed in (1, 0)
    ]
    results = Results(records, ["a"], "a")
    mean = results.metric("a", "max_vio")
    assert mean is not None and mean.value == 1.5
    layers = results.by_layer("a", "max_vio")
    assert layers is not None
    np.testing.assert_array_equal(layers, [[0, 2], [1, 3]])


def test_arm_of_another_lab() -> None:
    with pytest.raises(ConfigError, match="arm = 'z': is none of a, b"):
        Results([record("z", 0, 2.0)], ["a", "b"], "a")
