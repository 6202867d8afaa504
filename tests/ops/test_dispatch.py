import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import logits_for, make_routing

from moeworks.config.model import CapacityConfig
from moeworks.ops.dispatch import apply_capacity, dispatch
from moeworks.ops.routing import Routing


def routing_to(expert_ids: list[list[int]], num_experts: int = 4, **options) -> Routing:
    routing = make_routing(logits_for(expert_ids, num_experts), top_k=len(expert_ids[0]), **options)
    assert routing.expert_ids_TK.tolist() == expert_ids
    return routing


def capacity(factor: float | None, **options) -> CapacityConfig:
    return CapacityConfig(capacity_factor=factor, **options)


def kept(routing: Routing, factor: float, **options) -> list[list[bool]]:
    return apply_capacity(routing, capacity(factor, **options), training=True).kept_TK.tolist()


def test_assignments_are_sorted_by_expert_and_tokens_keep_their_order():
    plan = dispatch(routing_to([[2, 0], [0, 2], [1, 0]]), 4)
    assert plan.order_N.tolist() == [1, 2, 5, 4, 0, 3]
    assert plan.rows_per_expert_E.tolist() == [3, 1, 2, 0]
    assert plan.inverse_N[plan.order_N].tolist() == list(range(6))


def test_what_no_expert_computes_comes_last():
    routing = routing_to([[3, 0], [0, 2], [1, 3]])
    routing = replace(routing, kept_TK=torch.tensor([[True, True], [True, False], [True, True]]))
    plan = dispatch(routing, 3)  # id 3 is a zero-computation expert here
    assert plan.order_N.tolist() == [1, 2, 4, 0, 3, 5]
    assert plan.rows_per_expert_E.tolist() == [2, 1, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), tokens=st.integers(0, 20), routed=st.integers(1, 5))
def test_order_and_inverse_are_a_permutation_and_its_inverse(seed, tokens, routed):
    torch.manual_seed(seed)
    routing = make_routing(torch.randn(tokens, 5))
    routing = replace(routing, kept_TK=torch.rand(tokens, 2) < 0.7)
    plan = dispatch(routing, routed)
    everything = torch.arange(tokens * 2)
    assert torch.equal(plan.order_N.sort().values, everything)
    assert torch.equal(plan.inverse_N[plan.order_N], everything)
    computed = plan.order_N[: int(plan.rows_per_expert_E.sum())]
    ids = routing.expert_ids_TK.reshape(-1)[computed]
    assert torch.equal(ids, torch.arange(routed).repeat_interleave(plan.rows_per_expert_E))
    assert routing.kept_TK.reshape(-1)[computed].all()


def test_dropless_keeps_everything_and_padding_keeps_nothing():
    routing = routing_to([[0, 1], [0, 1]])
    assert apply_capacity(routing, capacity(None), training=True).kept_TK is None
    padded = replace(routing, valid_T=torch.tensor([True, False]))
    assert apply_capacity(padded, capacity(None), training=True).kept_TK.tolist() == [[True] * 2, [False] * 2]


def test_by_position_later_tokens_are_dropped():
    # capacity = ceil(1 * 4 tokens * 1 slot / 4 experts) = 1
    routing = routing_to([[0], [1], [0], [0]], renormalize=False)
    assert kept(routing, 1.0) == [[True], [True], [False], [False]]


def test_by_probability_the_least_probable_are_dropped():
    logits = torch.tensor([[1.0, 0, 0, 0], [0, 9.0, 0, 0], [3.0, 0, 0, 0], [2.0, 0, 0, 0]])
    routing = make_routing(logits, top_k=1)
    assert kept(routing, 1.0, drop_policy="probability") == [[False], [True], [True], [False]]


def test_equal_probabilities_drop_the_later_token():
    routing = make_routing(torch.tensor([[2.0, 0.0]] * 4), top_k=1)
    assert kept(routing, 1.0, drop_policy="probability") == [[True], [True], [False], [False]]


@pytest.mark.parametrize(
    ("factor", "tokens", "top_k", "want"),
    [
        (1.0, 4, 1, 2),
        (1.1, 20, 1, 11),  # 1.1 * 20 / 2 is 11.000000000000002 in floats
        (0.3, 10, 1, 2),
        (0.01, 10, 1, 1),
        (1.0, 3, 2, 3),
        (0.5, 4, 2, 2),
    ],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_capacity_is_factor_times_tokens_times_k_over_experts_rounded_up(
    factor, tokens, top_k, want, padding
):
    ids = [[0, 1][:top_k]] * (tokens + padding)
    routing = routing_to(ids, 2, renormalize=False)
    if padding:
        routing = replace(routing, valid_T=torch.arange(tokens + padding) < tokens)
    mask = torch.tensor(kept(routing, factor))
    assert mask.sum(0).tolist() == [want] * top_k


def test_min_capacity_is_a_lower_bound():
    routing = routing_to([[0]] * 6, renormalize=False)
    assert sum(map(sum, kept(routing, 0.1))) == 1
    assert sum(map(sum, kept(routing, 0.1, min_capacity=4))) == 4


def test_training_and_evaluation_have_factors_of_their_own():
    routing = routing_to([[0]] * 8, renormalize=False)
    config = CapacityConfig(capacity_factor=1.0, eval_capacity_factor=2.0)
    assert apply_capacity(routing, config, training=True).kept_TK.sum() == 2
    assert apply_capacity(routing, config, training=False).kept_TK.sum() == 4
    dropless = apply_capacity(routing, CapacityConfig(capacity_factor=1.0), training=False)
    assert dropless.kept_TK is None


def test_dropped_fraction_after_capacity():
    routing = routing_to([[0]] * 8, renormalize=False)
    assert apply_capacity(routing, capacity(1.0), training=True).dropped_fraction().item() == 0.75


def test_batch_priority_serves_first_choices_of_sure_tokens_first():
    """Riquelme et al. 2021, section 4.1 and algorithm 2: rank by rank, tokens sorted by their best weight."""
    torch.manual_seed(0)
    logits = torch.randn(40, 5, dtype=torch.float64)
    valid = torch.arange(40) % 7 != 0
    routing = make_routing(logits, top_k=3, valid_T=valid)
    config = capacity(0.6, drop_policy="batch_priority")
    got = apply_capacity(routing, config, training=True).kept_TK
    limit = math.ceil(0.6 * int(valid.sum()) * 3 / 5 - 1e-9)
    probs = logits.softmax(1)
    order = sorted((t for t in range(40) if valid[t]), key=lambda t: -probs[t].max().item())
    taken, want = [0] * 5, torch.zeros(40, 3, dtype=torch.bool)
    for slot in range(3):
        for token in order:
            expert = int(routing.expert_ids_TK[token, slot])
            if taken[expert] < limit:
                taken[expert] += 1
                want[token, slot] = True
    assert torch.equal(got, want)
    assert not got[valid].all()
