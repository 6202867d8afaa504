"""Load figures by hand, at their extremes, and against each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from traces import trace_of

from moeworks.analyse.load import (
    batch_load_table,
    device_balancedness,
    gini,
    load_entropy,
    load_table,
    max_vio,
)
from moeworks.errors import ConfigError
from moeworks.ops.load import load_figures
from moeworks.trace import ExpertCounts

COUNTS = arrays(np.int64, (3, 6), elements=st.integers(0, 1000)).filter(lambda c: (c.sum(axis=1) > 0).all())


def table(*layers):
    counts = np.array(layers)[None]
    return load_table(ExpertCounts(("all",), tuple(range(len(layers))), counts))


def test_balanced_collapsed_and_by_hand():
    found = table([5, 5, 5, 5], [20, 0, 0, 0], [6, 3, 3, 0])
    assert found.load.tolist()[2] == [0.5, 0.25, 0.25, 0]
    assert found.max_vio.tolist() == [0, 3, 1]
    assert found.cv == pytest.approx([0, 3**0.5, np.std([6, 3, 3, 0]) / 3])
    assert found.entropy == pytest.approx([1, 0, 1.5 / 2])
    assert found.effective_experts == pytest.approx([4, 1, 2**1.5])
    assert found.dead.tolist() == [0, 3, 1]
    assert found.gini == pytest.approx([0, 0.75, (3 * 6 + 3 - 3 - 0) / (4 * 12)])


def test_groups_are_added():
    counts = np.array([[[3, 0]], [[0, 3]]])
    assert load_table(ExpertCounts(("a", "b"), (0,), counts)).max_vio.tolist() == [0]


def test_threshold_of_dead():
    assert table([1, 99, 200]).dead.tolist() == [0]
    assert table([1, 100, 202]).dead.tolist() == [1]
    counts = ExpertCounts(("all",), (0,), np.array([[[40, 80, 180]]]))
    assert load_table(counts, dead_below=0.5).dead.tolist() == [1]


@given(COUNTS)
def test_same_as_in_training(counts):
    """ops/load.py computes three of them with torch."""
    theirs = load_figures(torch.from_numpy(counts))
    ours = load_table(ExpertCounts(("all",), (0, 1, 2), counts[None]))
    assert ours.max_vio == pytest.approx(theirs.max_vio)
    assert ours.dead.tolist() == theirs.dead_experts
    assert ours.entropy == pytest.approx(theirs.load_entropy)


@given(COUNTS, st.permutations(range(6)), st.integers(1, 9))
def test_invariant_to_order_and_scale_and_within_range(counts, order, scale):
    for figure, low, high in ((max_vio, 0, 5), (gini, 0, 5 / 6), (load_entropy, 0, np.log(6))):
        value = figure(counts)
        np.testing.assert_allclose(figure(counts[:, order] * scale), value, atol=1e-9)
        assert ((value >= low - 1e-9) & (value <= high + 1e-9)).all()


@given(arrays(np.int64, 5, elements=st.integers(0, 50)).filter(lambda c: c.sum() > 0))
def test_gini_is_the_mean_difference_of_pairs(counts):
    pairs = np.abs(counts[:, None] - counts).sum()
    assert gini(counts) == pytest.approx(pairs / (2 * 5 * counts.sum()))


def test_device_balancedness():
    counts = ExpertCounts(("all",), (0, 1), np.array([[[6, 0, 3, 3], [8, 0, 0, 0]]]))
    assert device_balancedness(counts, 4).tolist() == [0.5, 0.25]
    assert device_balancedness(counts, 2).tolist() == [1, 0.5]
    assert device_balancedness(counts, 1).tolist() == [1, 1]
    with pytest.raises(ConfigError, match="num_devices = 3: must divide the number of experts, 4"):
        device_balancedness(counts, 3)


def test_batches_show_what_the_whole_hides():
    """Each batch uses one expert, all batches together use all alike."""
    ids = np.repeat(np.arange(4), 5)[:, None, None]
    trace = trace_of(ids, 4)
    assert load_table(ExpertCounts(("all",), (0,), np.full((1, 1, 4), 5))).max_vio.tolist() == [0]
    assert batch_load_table(trace, 5).max_vio.tolist() == [3]
    assert batch_load_table(trace, 20).max_vio.tolist() == [0]
    two = batch_load_table(trace, 8)  # 5 + 3, 2 + 5 + 1, and 4 tokens left out
    assert two.max_vio_of_batch.tolist() == [[1.5, 1.5]]
    with pytest.raises(ConfigError, match="batch_tokens = 21: must lie between 1 and 20"):
        batch_load_table(trace, 21)
