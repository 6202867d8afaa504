"""Scores of published routers: the choice by logits with sigmoid weights, and sparsemixer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_layers import make_routing

from moeworks.config import RouterConfig
from moeworks.errors import ConfigError
from moeworks.ops.scoring import sparsemixer_weights


def test_sigmoid_of_the_chosen_logits():
    logits = torch.tensor([[40.0, 50.0, -3.0, 0.5], [-1.0, -2.0, -3.0, -4.0]], dtype=torch.float64)
    options = dict(score="sigmoid", score_order="after_top_k", renormalize=False)
    routing = make_routing(logits, top_k=2, **options)
    # Both sigmoids are 1 in float64; the logits still tell 50 from 40.
    assert routing.expert_ids_TK.tolist() == [[1, 0], [0, 1]]
    torch.testing.assert_close(routing.routing_weights_TK, logits.sigmoid().gather(1, routing.expert_ids_TK))
    one = make_routing(logits, top_k=1, **options)
    assert one.expert_ids_TK.tolist() == [[1], [0]]


def by_hand(z: list[float], eps: float) -> tuple[list[int], list[float]]:
    """SparseMixer's two choices, each a softmax over those left that are near the best."""
    left, ids, weights = list(range(len(z))), [], []
    for _ in range(2):
        best = max(left, key=lambda e: z[e])
        near = [e for e in left if (z[best] - z[e]) / max(abs(z[e]), z[best]) <= 2 * eps]
        exps = torch.tensor([z[e] for e in near], dtype=torch.float64).softmax(0)
        ids.append(best)
        weights.append(float(exps[near.index(best)]))
        left.remove(best)
    return ids, weights


@given(st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=8, unique=True))
def test_sparsemixer_by_hand(values):
    logits = torch.tensor([values], dtype=torch.float64)
    ids, weights = by_hand(values, 0.1)
    routing = make_routing(logits, top_k=2, score="sparsemixer", renormalize=False, sparsemixer_eps=0.1)
    assert routing.expert_ids_TK[0].tolist() == ids
    assert routing.routing_weights_TK[0].tolist() == pytest.approx(weights)


def test_sparsemixer_weights_do_not_sum_to_one_and_carry_a_gradient():
    logits = torch.tensor([[1.0, 0.9, 0.95, -3.0]], dtype=torch.float64, requires_grad=True)
    weights = sparsemixer_weights(logits, torch.tensor([[0, 2]]), 0.1)
    assert weights.sum() != 1
    (gradient,) = torch.autograd.grad(weights.sum(), logits)
    assert (gradient[0, :3] != 0).all() and gradient[0, 3] == 0


@pytest.mark.parametrize(
    "options",
    [
        dict(score="sparsemixer", top_k=3, renormalize=False),
        dict(score="sparsemixer", renormalize=True),
        dict(score="sparsemixer", renormalize=False, selection_bias=True),
        dict(score="sqrtsoftplus", score_order="after_top_k"),
    ],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError, match="router"):
        RouterConfig(num_experts=6, **options)


def test_a_weight_that_is_always_1_is_read_and_not_trained():
    router = RouterConfig(num_experts=6, top_k=1, score_order="after_top_k", renormalize=False)
    with pytest.raises(ConfigError, match=r"router\.top_k"):
        router.check_trainable()
