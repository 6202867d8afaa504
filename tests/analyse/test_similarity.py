import numpy as np
import pytest
import torch

from moeworks.analyse.similarity import (
    expert_outputs,
    expert_similarity,
    linear_cka,
    off_diagonal_mean,
    output_similarity,
    weight_similarity,
)
from moeworks.config import MoEConfig
from moeworks.errors import ConfigError
from moeworks.layers.moe import MoE

CONFIG = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2)


def test_weights_by_hand():
    weights = np.array([[[1.0, 0]], [[2, 0]], [[0, 3]], [[-1, 0]], [[0, 0]]])
    assert weight_similarity(weights).tolist() == [
        [1, 1, 0, -1, 0], [1, 1, 0, -1, 0], [0, 0, 1, 0, 0], [-1, -1, 0, 1, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip


def test_outputs_by_hand():
    outputs = np.array([[[1.0, 0], [0, 1]], [[2, 0], [0, -1]]])
    assert output_similarity(outputs).tolist() == [[1, 0], [0, 1]]


def test_cka_sees_through_rotation_and_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    found = linear_cka(np.stack([x, 3 * x @ turn + 5, rng.normal(size=(500, 6))]))
    assert np.diag(found) == pytest.approx([1, 1, 1])
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] < 0.05


def test_mean_leaves_the_diagonal_out():
    assert off_diagonal_mean(np.array([[1, 0.5], [0.25, 1]])) == 0.375
    assert np.isnan(off_diagonal_mean(np.ones((1, 1))))


def test_copies_are_alike_and_fresh_experts_are_not():
    torch.manual_seed(0)
    moe = MoE(CONFIG)
    fresh = expert_similarity(moe.experts, torch.randn(50, 8))
    assert abs(fresh.mean()["weights"]) < 0.2
    with torch.no_grad():
        for parameter in moe.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    copies = expert_similarity(moe.experts, torch.randn(50, 8))
    assert copies.mean() == pytest.approx({"weights": 1, "outputs": 1, "cka": 1}, abs=1e-4)
    assert expert_similarity(moe.experts).mean() == pytest.approx({"weights": 1})


def test_outputs_are_those_of_each_expert():
    torch.manual_seed(0)
    moe = MoE(CONFIG).double()
    x = torch.randn(5, 8).double()
    found = expert_outputs(moe.experts, x)
    gate_up, down = moe.experts.gate_up_proj, moe.experts.down_proj
    for expert in range(4):
        gate, up = (x @ gate_up[expert].T).chunk(2, dim=1)
        expected = (torch.nn.functional.silu(gate) * up) @ down[expert].T
        np.testing.assert_allclose(found[expert], expected.detach().numpy(), rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match=r"must be \[T, 8\]"):
        expert_outputs(moe.experts, torch.zeros(2, 3).double())
