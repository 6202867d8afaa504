import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.analyse.load import load_entropy
from moeworks.ops.load import breadth, effective_experts, load_figures


def test_balanced_and_collapsed_layers():
    figures = load_figures(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0]]))
    assert figures.max_vio == [0.0, 3.0]  # E / K - 1 with one expert per token
    assert figures.dead_experts == [0, 3]
    assert figures.load_entropy == pytest.approx([1.0, 0.0])


def test_by_hand():
    figures = load_figures(torch.tensor([[6, 3, 3, 0]]))
    assert figures.max_vio == [1.0]
    assert figures.dead_experts == [1]
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert figures.load_entropy == pytest.approx([entropy / math.log(4)])


def test_dead_is_less_than_a_hundredth_of_the_balanced_load():
    assert load_figures(torch.tensor([[1, 99, 200]])).dead_experts == [0]  # 1 of a mean of 100
    assert load_figures(torch.tensor([[1, 100, 202]])).dead_experts == [1]


def test_counts_beyond_float32_are_exact():
    assert load_figures(torch.tensor([[2**40 + 1, 2**40 - 1]])).max_vio == [2.0**-40]


def test_a_model_without_moe_layers():
    figures = load_figures(torch.zeros(0, 0, dtype=torch.int64))
    assert figures.max_vio == figures.dead_experts == figures.load_entropy == []


# Breadth.


def test_breadth_in_closed_form():
    counts = torch.tensor([[5] * 8, [20, 20, 0, 0, 0, 0, 0, 0], [10] * 4 + [0] * 4, [0] * 8])
    assert effective_experts(counts[:3]).tolist() == pytest.approx([8, 2, 4])
    assert breadth(counts, 2).tolist() == pytest.approx([1, 0, 1 / 3, 0])
    assert breadth(counts, 8).tolist() == [1.0] * 4  # no choice
    assert breadth(counts.view(2, 2, 8), 2).shape == (2, 2)


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=20).filter(sum), st.integers(1, 2))
def test_breadth_lies_between_0_and_1_and_knows_no_order(counts, top_k):
    value = float(breadth(torch.tensor(counts), top_k))
    assert 0 <= value <= 1
    assert float(breadth(torch.tensor(sorted(counts)), top_k)) == pytest.approx(value, abs=1e-12)
    nats = float(np.log(effective_experts(torch.tensor(counts)).item()))
    assert nats == pytest.approx(float(load_entropy(np.array(counts))), abs=1e-9)
