import math

import pytest
import torch

from moeworks.ops.load import load_figures


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
