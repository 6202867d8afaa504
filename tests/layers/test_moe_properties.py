"""What must hold for any router, whatever the weights: symmetries, padding, capacity, weights, ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import make_config, make_routing, random_moe

from moeworks import BalanceConfig, balance_losses
from moeworks.ops.scoring import stable_top_k

EVERY_LOSS = BalanceConfig(
    switch_coef=1,
    global_batch_coef=1,
    sequence_coef=1,
    entropy_coef=1,
    importance_coef=1,
    z_coef=1,
    device_coef=1,
    communication_coef=1,
    num_devices=2,
)
ROUTERS = st.sampled_from(
    [
        dict(),
        dict(score="sigmoid", selection_bias=True, routing_scale=2.5),
        dict(score="sqrtsoftplus", top_k=3),
        dict(score_order="after_top_k", router_bias=True),
        dict(renormalize=False, expert_linear_bias=True, weights_on="input"),
        dict(num_identity_experts=2, num_shared_experts=1, shared_token_gate=True),
    ]
)
GROUPED = dict(score="sigmoid", selection_bias=True, num_groups=3, top_k_groups=2, top_k=3)
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=15, deadline=None)


def tokens(count: int = 9) -> torch.Tensor:
    return torch.randn(count, 8, dtype=torch.float64)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@few
@given(options=ROUTERS, seed=SEEDS)
def test_permuting_experts_permutes_ids_and_leaves_the_output(options, seed):
    config = make_config(**options)
    moe, permuted = random_moe(config, seed=seed), random_moe(config, seed=seed)
    x, routed = tokens(), config.num_experts
    order = torch.randperm(routed)
    with torch.no_grad():
        for name, weight in (*permuted.named_parameters(), *permuted.named_buffers()):
            if name.startswith(("experts.", "router.")):
                weight[:routed] = weight[:routed][order]
    (y, routing), (y_permuted, routing_permuted) = moe(x), permuted(x)
    back = torch.cat([order, torch.arange(routed, config.num_routes)])
    assert torch.equal(back[routing_permuted.expert_ids_TK], routing.expert_ids_TK)
    assert_close(y_permuted, y)


@few
@given(options=ROUTERS | st.just(GROUPED), seed=SEEDS)
def test_permuting_tokens_permutes_the_output(options, seed):
    moe, x = random_moe(make_config(**options), seed=seed), tokens()
    order = torch.randperm(len(x))
    (y, routing), (y_permuted, routing_permuted) = moe(x), moe(x[order])
    assert torch.equal(routing_permuted.expert_ids_TK, routing.expert_ids_TK[order])
    assert_close(y_permuted, y[order])


@few
@given(options=ROUTERS | st.just(GROUPED), seed=SEEDS, size=st.integers(1, 8))
def test_a_token_does_not_depend_on_its_batch(options, seed, size):
    moe, x = random_moe(make_config(**options), seed=seed), tokens()
    assert_close(moe(x[:size])[0], moe(x)[0][:size])
    others = torch.cat([x[:size], 100 * tokens(3)])
    assert_close(moe(others)[0][:size], moe(x)[0][:size])


@few
@given(
    options=ROUTERS,
    seed=SEEDS,
    factor=st.sampled_from([None, 0.4, 1.0]),
    policy=st.sampled_from(["position", "probability"]),
    padding=st.lists(st.integers(0, 9), max_size=6),
)
def test_padding_changes_nothing(options, seed, factor, policy, padding):
    config = make_config(**options, capacity_factor=factor, drop_policy=policy)
    moe, x, sequences = random_moe(config, seed=seed), tokens(), torch.tensor([4] * 5 + [7] * 4)
    y, routing = moe(x, sequence_ids=sequences)
    padded_x, padded_sequences, valid = list(x), list(sequences), [True] * len(x)
    for place in padding:
        padded_x.insert(place, 100 * tokens(1)[0])
        padded_sequences.insert(place, torch.tensor(7))
        valid.insert(place, False)
    valid = torch.tensor(valid)
    y_padded, routing_padded = moe(
        torch.stack(padded_x), sequence_ids=torch.stack(padded_sequences), valid=valid
    )
    assert_close(y_padded[valid], y)
    assert torch.equal(routing_padded.tokens_per_expert(), routing.tokens_per_expert())
    assert_close(routing_padded.dropped_fraction(), routing.dropped_fraction())
    if factor is not None:
        assert torch.equal(routing_padded.kept_TK[valid], routing.kept_TK)
    losses, losses_padded = (balance_losses([r], EVERY_LOSS) for r in (routing, routing_padded))
    for name, loss in losses.items():
        assert_close(losses_padded[name], loss)


@few
@given(
    seed=SEEDS,
    scale=st.sampled_from([1.0, 2.5]),
    score=st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"]),
    top_k=st.integers(2, 6),
)
def test_renormalised_weights_sum_to_the_scale(seed, scale, score, top_k):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(9, 6, dtype=torch.float64)
    routing = make_routing(logits, top_k=top_k, score=score, routing_scale=scale)
    assert_close(routing.routing_weights_TK.sum(1), torch.full((9,), scale, dtype=torch.float64))
    assert (routing.routing_weights_TK > 0).all()


@few
@given(
    seed=SEEDS,
    factor=st.floats(0.05, 20),
    minimum=st.integers(1, 30),
    policy=st.sampled_from(["position", "probability"]),
    count=st.integers(1, 20),
)
def test_capacity_is_respected_and_never_above_the_tokens(seed, factor, minimum, policy, count):
    config = make_config(capacity_factor=factor, min_capacity=minimum, drop_policy=policy)
    _, routing = random_moe(config, seed=seed)(tokens(count))
    kept = torch.bincount(routing.expert_ids_TK[routing.kept_TK], minlength=6)
    capacity = min(max(math.ceil(factor * count * 2 / 6 - 1e-9), minimum), count)
    assert torch.equal(kept, routing.tokens_per_expert().clamp(max=capacity))


@few
@given(values=st.lists(st.integers(-2, 2), min_size=1, max_size=12), data=st.data())
def test_ties_go_to_the_lower_id(values, data):
    k = data.draw(st.integers(1, len(values)))
    want = sorted(range(len(values)), key=lambda e: (-values[e], e))[:k]
    assert stable_top_k(torch.tensor([values], dtype=torch.float64), k).tolist() == [want]


@few
@given(options=ROUTERS, seed=SEEDS, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_a_state_dict_restores_the_layer_exactly(options, seed, dtype):
    config = make_config(**options)
    moe, other = random_moe(config, dtype=dtype, seed=seed), random_moe(config, dtype=dtype, seed=seed + 1)
    other.load_state_dict(moe.state_dict())
    x = tokens().to(dtype)
    assert torch.equal(other(x)[0], moe(x)[0])
    assert {n: v.dtype for n, v in other.state_dict().items()} == {
        n: v.dtype for n, v in moe.state_dict().items()
    }


@pytest.mark.parametrize("backend", ["reference", "sorted"])
def test_two_identical_calls_agree_bit_for_bit(backend):
    moe, x = random_moe(make_config(top_k=3), backend=backend, dtype=torch.float32), tokens().float()
    assert torch.equal(moe(x)[0], moe(x)[0])
