"""A training step of the MoE layer against straight_loop: output, loss, every gradient, for every option."""

import pytest
import straight_loop
import straight_losses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import assert_same, gradients, make_config, random_moe

from moeworks import BalanceConfig, MoE, MoEConfig, balance_losses, total_balance_loss

TOKENS = 6
NO_NOISE = BalanceConfig(
    switch_coef=0.3,
    global_batch_coef=0.2,
    sequence_coef=0.5,
    device_coef=0.7,
    communication_coef=0.4,
    entropy_coef=0.6,
    importance_coef=0.9,
    z_coef=0.8,
    num_devices=2,
)
ALL_ON = BalanceConfig(**{**vars(NO_NOISE), "load_coef": 1.1})

CASES = {
    "default": {},
    "top_1": dict(top_k=1, renormalize=False),
    "top_all": dict(top_k=6),
    "one_expert_each_side": dict(num_experts=2, top_k=2),
    "sigmoid": dict(score="sigmoid"),
    "sigmoid_raw": dict(score="sigmoid", renormalize=False),
    "sqrtsoftplus": dict(score="sqrtsoftplus"),
    "sqrtsoftplus_raw": dict(score="sqrtsoftplus", renormalize=False),
    "softmax_raw": dict(renormalize=False),
    "after_top_k": dict(score_order="after_top_k"),
    "after_top_k_raw": dict(score_order="after_top_k", renormalize=False),
    "scale": dict(routing_scale=2.5),
    "eps": dict(score="sigmoid", renormalize_eps=0.5),
    "weights_on_input": dict(weights_on="input"),
    "weights_on_input_biased": dict(weights_on="input", expert_linear_bias=True),
    "router_bias": dict(router_bias=True),
    "selection_bias": dict(selection_bias=True),
    "selection_bias_sigmoid": dict(selection_bias=True, score="sigmoid", routing_scale=2.5),
    "selection_bias_after_top_k": dict(selection_bias=True, score_order="after_top_k"),
    "groups_max": dict(num_groups=3, top_k_groups=1, group_score="max"),
    "groups_top2": dict(num_groups=2, top_k_groups=1, group_score="top2_sum"),
    "groups_top2_biased": dict(num_groups=3, top_k_groups=2, top_k=3, selection_bias=True, score="sigmoid"),
    "groups_max_biased": dict(num_groups=2, group_score="max", selection_bias=True),
    "geglu": dict(activation="geglu"),
    "relu": dict(activation="relu"),
    "gelu": dict(activation="gelu"),
    "relu2": dict(activation="relu2"),
    "biases": dict(expert_linear_bias=True),
    "biases_plain": dict(expert_linear_bias=True, activation="relu2", top_k=3),
    "shared": dict(num_shared_experts=1),
    "shared_gate": dict(num_shared_experts=2, d_shared=3, shared_token_gate=True, activation="gelu"),
    "capacity_position": dict(capacity_factor=0.6),
    "capacity_probability": dict(capacity_factor=0.6, drop_policy="probability"),
    "capacity_minimum": dict(capacity_factor=0.1, min_capacity=3),
    "capacity_above_tokens": dict(capacity_factor=50.0, min_capacity=99),
    "capacity_biases": dict(capacity_factor=0.5, expert_linear_bias=True, weights_on="input"),
    "identity": dict(num_identity_experts=2),
    "zero": dict(num_zero_experts=2),
    "identity_and_zero": dict(num_identity_experts=1, num_zero_experts=1, top_k=4, capacity_factor=0.9),
    "only_zero_computation_groups": dict(num_identity_experts=4, num_zero_experts=2, num_groups=2, top_k=3),
    "jitter": dict(input_jitter=0.3),
    "noisy": dict(noisy_top_k=True),
    "noisy_jitter_groups": dict(noisy_top_k=True, input_jitter=0.1, num_groups=2, top_k_groups=1),
    "everything": dict(
        score="sigmoid",
        top_k=3,
        routing_scale=1.5,
        router_bias=True,
        selection_bias=True,
        num_groups=2,
        top_k_groups=2,
        num_identity_experts=1,
        num_zero_experts=1,
        expert_linear_bias=True,
        num_shared_experts=1,
        shared_token_gate=True,
        capacity_factor=0.7,
        drop_policy="probability",
        noisy_top_k=True,
        input_jitter=0.2,
    ),
}


def training_step(moe: MoE, x, readout, targets, valid, sequences, seed=1):
    """Output, loss and gradients of the library."""
    torch.manual_seed(seed)
    y, routing = moe(x, valid=torch.tensor(valid), sequence_ids=torch.tensor(sequences))
    config = balance_config(moe.config)
    cross_entropy = torch.nn.functional.cross_entropy(y @ readout, torch.tensor(targets))
    loss = cross_entropy + total_balance_loss(balance_losses([routing], config), config)
    return y, loss, gradients(loss, moe, x), routing


def straight_step(moe: MoE, x, readout, targets, valid, sequences, seed=1):
    """The same from straight_loop, with the same random numbers."""
    torch.manual_seed(seed)
    config = moe.config
    spread = config.input_jitter
    jitter = torch.empty_like(x).uniform_(1 - spread, 1 + spread) if spread else None
    noise = torch.randn(len(x), config.num_routes, dtype=x.dtype) if config.noisy_top_k else None
    weights = straight_loop.named_weights(moe)
    y, record = straight_loop.moe(
        x, weights, config, valid=valid, sequences=sequences, jitter=jitter, noise=noise
    )
    loss = straight_losses.cross_entropy(y @ readout, targets)
    loss = loss + straight_losses.balance([record], balance_config(config))
    return y, loss, gradients(loss, moe, x), record


def balance_config(config: MoEConfig) -> BalanceConfig:
    return ALL_ON if config.noisy_top_k else NO_NOISE


def step_inputs(config: MoEConfig, dtype: torch.dtype) -> tuple:
    """x, readout, targets, valid, sequences; two of the tokens are padding."""
    x = torch.randn(TOKENS, config.d_model, dtype=dtype, requires_grad=True)
    readout = torch.randn(config.d_model, 5, dtype=dtype)
    targets = torch.randint(5, (TOKENS,)).tolist()
    return x, readout, targets, [True, True, False, True, True, False], [3, 3, 3, 5, 9, 9]


def assert_same_step(config: MoEConfig, backends, dtype=torch.float64, tolerance=1e-10, seed=0) -> None:
    moe = random_moe(config, dtype=dtype, seed=seed)
    inputs = step_inputs(config, dtype)
    want_y, want_loss, want_gradients, record = straight_step(moe, *inputs)
    for moe.experts.backend in backends:
        y, loss, found, routing = training_step(moe, *inputs)
        assert routing.expert_ids_TK.tolist() == record.ids
        assert routing.kept_TK.tolist() == record.kept
        got = {"y": y, "loss": loss} | found
        assert_same(got, {"y": want_y, "loss": want_loss} | want_gradients, tolerance)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_training_step_equals_the_straight_loop(options):
    assert_same_step(make_config(**options), ["reference", "sorted"])


@pytest.mark.parametrize("name", ["default", "biases", "weights_on_input_biased", "identity_and_zero"])
def test_grouped_mm_equals_the_straight_loop(name):
    # It has no float64. A gradient passes some ten sums of a few dozen terms around 1 to 10: 1e3 eps.
    assert_same_step(make_config(**CASES[name]), ["grouped_mm"], torch.float32, 1e-4)


@st.composite
def moe_configs(draw) -> MoEConfig:
    """Any combination of options that the config accepts."""
    score = draw(st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"]))
    orders = ["before_top_k", "after_top_k"] if score == "softmax" else ["before_top_k"]
    identity, zero = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    experts = draw(st.integers(2, 4)) * 2 - (identity + zero) % 2
    groups = draw(st.sampled_from([1, 2]))
    keep = draw(st.integers(1, groups))
    top_k = draw(st.integers(2, (experts + identity + zero) // groups * keep))
    shared = draw(st.integers(0, 2))
    return make_config(
        num_experts=experts,
        num_identity_experts=identity,
        num_zero_experts=zero,
        top_k=top_k,
        score=score,
        score_order=draw(st.sampled_from(orders)),
        renormalize=draw(st.booleans()),
        routing_scale=draw(st.sampled_from([1.0, 2.5])),
        weights_on=draw(st.sampled_from(["output", "input"])),
        router_bias=draw(st.booleans()),
        selection_bias=draw(st.booleans()),
        num_groups=groups,
        top_k_groups=keep,
        group_score=draw(st.sampled_from(["max", "top2_sum"])) if experts + identity + zero >= 4 else "max",
        input_jitter=draw(st.sampled_from([0.0, 0.2])),
        noisy_top_k=draw(st.booleans()),
        d_expert=draw(st.integers(1, 4)),
        activation=draw(st.sampled_from(["swiglu", "geglu", "relu", "gelu", "relu2"])),
        expert_linear_bias=draw(st.booleans()),
        num_shared_experts=shared,
        shared_token_gate=shared > 0 and draw(st.booleans()),
        capacity_factor=draw(st.sampled_from([None, 0.3, 0.8, 1.25])),
        min_capacity=draw(st.integers(1, 3)),
        drop_policy=draw(st.sampled_from(["position", "probability"])),
    )


@settings(max_examples=15, deadline=None)
@given(config=moe_configs(), seed=st.integers(0, 2**16))
def test_any_combination_of_options_equals_the_straight_loop(config, seed):
    assert_same_step(config, ["reference", "sorted"], seed=seed)


def test_evaluation_equals_the_straight_loop():
    config = make_config(
        noisy_top_k=True, input_jitter=0.3, capacity_factor=0.2, eval_capacity_factor=0.8, selection_bias=True
    )
    moe = random_moe(config, backend="sorted").eval()
    x = torch.randn(TOKENS, config.d_model, dtype=torch.float64)
    y, routing = moe(x)
    want, record = straight_loop.moe(x, straight_loop.named_weights(moe), config, training=False)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    assert routing.kept_TK.tolist() == record.kept
    assert not all(all(row) for row in record.kept)
