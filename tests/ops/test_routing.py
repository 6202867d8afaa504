import math
from dataclasses import replace

import pytest
import torch
from random_layers import make_routing

from moeworks.config.model import RouterConfig
from moeworks.ops.routing import count_assignments
from moeworks.ops.scoring import mask_groups, score, select_experts, stable_top_k


def logits(tokens: int = 12, experts: int = 6, dtype=torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, experts, dtype=dtype)


def config(**options) -> RouterConfig:
    return RouterConfig(**{**dict(num_experts=6, top_k=2), **options})


@pytest.mark.parametrize(
    ("name", "want"),
    [
        (
            "softmax",
            [math.exp(1) / (math.exp(1) + math.exp(-2)), math.exp(-2) / (math.exp(1) + math.exp(-2))],
        ),
        ("sigmoid", [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))]),
        ("sqrtsoftplus", [math.log1p(math.exp(1)) ** 0.5, math.log1p(math.exp(-2)) ** 0.5]),
    ],
)
def test_scores_by_hand(name, want):
    got = score(torch.tensor([[1.0, -2.0]], dtype=torch.float64), config(num_experts=2, score=name))
    torch.testing.assert_close(got[0], torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_extreme_logits_keep_weights_and_gradients_finite(name, renormalize):
    extreme = torch.tensor([[-1e4] * 6, [1e4] * 6, [-1e4, 1e4] * 3, [-200.0] * 6], requires_grad=True)
    routing = make_routing(extreme, score=name, renormalize=renormalize)
    assert routing.routing_weights_TK.isfinite().all()
    (grad,) = torch.autograd.grad(routing.routing_weights_TK.square().sum(), extreme)
    assert grad.isfinite().all()


def test_softmax_of_the_chosen_equals_renormalised_softmax_of_all():
    before = make_routing(logits(), top_k=3)
    after = make_routing(logits(), top_k=3, score_order="after_top_k")
    assert torch.equal(before.expert_ids_TK, after.expert_ids_TK)
    torch.testing.assert_close(before.routing_weights_TK, after.routing_weights_TK)


def test_without_renormalising_the_weights_are_the_probabilities_times_the_scale():
    routing = make_routing(logits(), renormalize=False, routing_scale=2.5)
    chosen = routing.router_probs_TE.gather(1, routing.expert_ids_TK)
    torch.testing.assert_close(routing.routing_weights_TK, 2.5 * chosen)
    different = make_routing(logits(), renormalize=False, score_order="after_top_k", routing_scale=2.5)
    torch.testing.assert_close(different.routing_weights_TK.sum(1), torch.full((12,), 2.5).double())


def test_ids_are_best_first_and_distinct():
    ids = make_routing(logits(), top_k=4).expert_ids_TK
    values = logits().gather(1, ids)
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert all(len(set(row)) == 4 for row in ids.tolist())


def test_the_bias_moves_the_choice_and_the_record_keeps_the_unbiased_one():
    bias = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, -5.0])
    routing, plain = make_routing(logits(), expert_bias_E=bias), make_routing(logits())
    assert (routing.expert_ids_TK[:, 0] == 2).all()
    assert not (routing.expert_ids_TK == 5).any()
    assert torch.equal(routing.unbiased_ids_TK, plain.expert_ids_TK)
    assert plain.unbiased_ids_TK is None
    assert torch.equal(routing.router_probs_TE, plain.router_probs_TE)


def test_group_scores():
    values = torch.tensor([[9.0, 0.0, 5.0, 5.0, 1.0, 1.0]])
    by_max = mask_groups(values, config(num_groups=3, group_score="max"))
    assert by_max.isfinite().tolist() == [[True, True, False, False, False, False]]
    by_sum = mask_groups(values, config(num_groups=3, group_score="top2_sum"))
    assert by_sum.isfinite().tolist() == [[False, False, True, True, False, False]]


def test_equal_groups_go_to_the_lower_one():
    masked = mask_groups(torch.zeros(1, 6), config(num_groups=3, top_k_groups=2))
    assert masked.isfinite().tolist() == [[True, True, True, True, False, False]]


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
def test_experts_come_from_at_most_the_allowed_groups(group_score):
    options = config(num_experts=12, num_groups=4, top_k_groups=2, top_k=4, group_score=group_score)
    ids = select_experts(logits(50, 12), options)
    assert all(len({e // 3 for e in row}) <= 2 for row in ids.tolist())


def test_stable_top_k_equals_a_stable_sort():
    values = torch.randint(0, 3, (200, 8)).double()
    want = values.argsort(dim=-1, descending=True, stable=True)[:, :5]
    assert torch.equal(stable_top_k(values, 5), want)


def test_stable_top_k_leaves_its_input():
    values = logits()
    before = values.clone()
    stable_top_k(values, 3)
    assert torch.equal(values, before)


def test_counts_by_hand():
    ids = torch.tensor([[0, 3], [3, 1], [3, 0]])
    assert count_assignments(ids, 5).tolist() == [2, 1, 0, 3, 0]
    assert count_assignments(ids, 5, torch.tensor([True, False, True])).tolist() == [2, 0, 0, 2, 0]
    assert count_assignments(ids[:0], 5).tolist() == [0] * 5


def test_counts_are_integers_and_sum_to_tokens_times_k():
    routing = make_routing(logits(), top_k=3)
    assert routing.tokens_per_expert().dtype == torch.int64
    assert routing.tokens_per_expert().sum() == 12 * 3
    assert routing.num_tokens == 12
    assert (routing.num_experts, routing.top_k) == (6, 3)
    assert make_routing(logits(), valid_T=torch.arange(12) < 5).num_tokens == 5


def test_dropped_fraction_by_hand():
    kept = torch.tensor([[True, False], [True, True], [False, False]])
    routing = replace(make_routing(logits(3)), kept_TK=kept)
    assert routing.dropped_fraction().item() == pytest.approx(0.5)
    valid = replace(routing, valid_T=torch.tensor([True, True, False]))
    assert valid.dropped_fraction().item() == pytest.approx(0.25)
    assert make_routing(logits(3)).dropped_fraction() == 0


def test_tensors_and_with_tensors_are_inverse():
    routing = make_routing(logits(), valid_T=torch.ones(12, dtype=torch.bool), expert_bias_E=torch.zeros(6))
    tensors = routing.tensors()
    assert len(tensors) == 6
    doubled = routing.with_tensors(tuple(2 * t if t.is_floating_point() else t for t in tensors))
    assert torch.equal(doubled.router_logits_TE, 2 * routing.router_logits_TE)
    assert torch.equal(doubled.expert_ids_TK, routing.expert_ids_TK)
    assert doubled.kept_TK is doubled.noise_std_TE is None
    with pytest.raises(ValueError, match="zip"):
        routing.with_tensors(tensors[:-1])


def test_the_choice_carries_no_gradient_and_the_weights_do():
    raw = logits().requires_grad_()
    routing = make_routing(raw)
    assert not routing.expert_ids_TK.requires_grad
    # With top_k = 2 and a scale, sum of weights is constant; single weights are not.
    (grad,) = torch.autograd.grad(routing.routing_weights_TK[:, 0].sum(), raw)
    assert grad.any()
    chosen = torch.zeros(12, 6, dtype=torch.bool).scatter(1, routing.expert_ids_TK, True)
    torch.testing.assert_close(grad[~chosen], torch.zeros_like(grad[~chosen]), atol=1e-15, rtol=0)
