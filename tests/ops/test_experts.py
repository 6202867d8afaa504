from dataclasses import replace

import torch
from random_layers import logits_for, make_routing

from moeworks.ops.experts import ExpertWeights, masked_weights, zero_computation


def routing():
    return make_routing(
        logits_for([[3, 0], [4, 3], [0, 1]], 5), num_experts=3, num_identity_experts=1, num_zero_experts=1
    )


def test_masked_weights_are_0_where_the_assignment_was_dropped():
    kept = torch.tensor([[True, False], [True, True], [False, False]])
    masked = masked_weights(replace(routing(), kept_TK=kept))
    assert torch.equal(masked != 0, kept & (routing().routing_weights_TK != 0))
    assert torch.equal(masked[kept], routing().routing_weights_TK[kept])
    assert masked_weights(routing()) is not None
    assert torch.equal(masked_weights(routing()), routing().routing_weights_TK)


def test_identity_experts_return_the_token_times_its_weight_and_zero_experts_nothing():
    x = torch.randn(3, 4, dtype=torch.float64)
    weights = routing().routing_weights_TK
    y = zero_computation(x, routing(), 3, 1)
    torch.testing.assert_close(y, torch.stack([x[0] * weights[0, 0], x[1] * weights[1, 1], 0 * x[2]]))


def test_a_dropped_identity_expert_adds_nothing():
    kept = torch.tensor([[False, True], [True, True], [True, True]])
    y = zero_computation(torch.ones(3, 4).double(), replace(routing(), kept_TK=kept), 3, 1)
    assert not y[0].any() and y[1].any()


def test_weights_know_their_number_and_kind():
    weights = ExpertWeights(torch.zeros(3, 8, 5), torch.zeros(3, 5, 4), None, None, "swiglu", "output")
    assert weights.num_experts == 3
    assert weights.gated
    assert not replace(weights, activation="relu2").gated
