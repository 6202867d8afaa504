import pytest
import torch
from random_layers import make_config
from torch import nn

from moeworks import MoE
from moeworks.layers.init import init_matrix_
from moeworks.layers.mlp import MLP


def test_a_matrix_is_uniform_in_one_over_root_fan_in():
    weight = init_matrix_(torch.empty(4, 300, 25))
    assert 0.1999 < weight.abs().max() <= 0.2
    assert weight.mean().abs() < 5 * 0.2 / (3 * weight.numel()) ** 0.5
    assert weight.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.01)


def test_it_is_the_distribution_of_a_linear_layer():
    linear, weight = nn.Linear(25, 5000).weight, init_matrix_(torch.empty(5000, 25))
    assert weight.std().item() == pytest.approx(linear.std().item(), rel=0.01)
    assert weight.abs().max().item() == pytest.approx(linear.abs().max().item(), rel=0.01)


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_every_expert_starts_as_a_dense_block_of_its_width_would(activation):
    config = make_config(d_model=64, d_expert=96, activation=activation)
    moe, dense = MoE(config), MLP(64, 96, activation)
    up = "gate_up_proj" if activation == "swiglu" else "up_proj"
    for name in (up, "down_proj"):
        stack, matrix = getattr(moe.experts, name), getattr(dense, name).weight
        assert stack.shape[1:] == matrix.shape
        for expert in stack:
            assert expert.std().item() == pytest.approx(matrix.std().item(), rel=0.03)


def test_no_two_experts_start_alike():
    moe = MoE(make_config(num_experts=16))
    for stack in moe.experts.parameters():
        distances = torch.cdist(stack.flatten(1), stack.flatten(1)) + 9 * torch.eye(16)
        assert distances.min() > 0.5
