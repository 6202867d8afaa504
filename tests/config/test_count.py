from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import (
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.count import (
    count_bytes,
    count_flops,
    count_kv_bytes,
    count_parameters,
)

V, D, H, G, P, F, E, K, LAYERS = 50, 16, 4, 2, 6, 10, 5, 2, 3
SMALL = ModelConfig(
    vocab_size=V,
    d_model=D,
    num_layers=LAYERS,
    attention=GQAConfig(num_heads=H, num_kv_heads=G, head_dim=P, qk_norm=False),
    pattern=LayerPatternConfig(first_dense=1),
    mlp=MLPConfig(d_ff=20),
    router=RouterConfig(num_experts=E, top_k=K),
    experts=ExpertsConfig(d_expert=F),
)
ATTENTION = 2 * H * P * D + 2 * G * P * D
MOE_LAYERS = 2


def test_every_component_by_hand():
    count = count_parameters(SMALL)
    assert count.embedding == V * D
    assert count.attention == LAYERS * ATTENTION
    assert count.norms == LAYERS * 2 * D + D
    assert count.dense_mlp == 3 * D * 20
    assert count.router == MOE_LAYERS * E * D
    assert count.experts == MOE_LAYERS * E * 3 * D * F
    assert count.active_experts == MOE_LAYERS * K * 3 * D * F
    assert (count.shared, count.lm_head) == (0, 0)
    rest = V * D + LAYERS * (ATTENTION + 2 * D) + D + 3 * D * 20 + MOE_LAYERS * E * D
    assert count.total == rest + MOE_LAYERS * E * 3 * D * F
    assert count.active == rest + MOE_LAYERS * K * 3 * D * F
    assert count.active_non_embedding == count.active - V * D


def extra(**changes: object) -> int:
    """Parameters that `changes` add to SMALL."""
    return count_parameters(replace(SMALL, **changes)).total - count_parameters(SMALL).total


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"tie_embeddings": False}, V * D),
        ({"attention": replace(SMALL.attention, qk_norm=True)}, LAYERS * 2 * P),
        ({"attention": replace(SMALL.attention, qkv_bias=True)}, LAYERS * (H * P + 2 * G * P)),
        ({"mlp": replace(SMALL.mlp, mlp_activation="relu2")}, -D * 20),
        ({"mlp": replace(SMALL.mlp, mlp_bias=True)}, 2 * 20 + D),
        ({"mlp": replace(SMALL.mlp, mlp_activation="gelu", mlp_bias=True)}, -D * 20 + 20 + D),
        ({"router": replace(SMALL.router, router_bias=True)}, MOE_LAYERS * E),
        ({"router": replace(SMALL.router, noisy_top_k=True)}, MOE_LAYERS * E * D),
        ({"router": replace(SMALL.router, selection_bias=True)}, 0),
        ({"router": replace(SMALL.router, num_zero_experts=1, num_identity_experts=2)}, MOE_LAYERS * 3 * D),
        ({"experts": replace(SMALL.experts, activation="relu")}, -MOE_LAYERS * E * D * F),
        ({"experts": replace(SMALL.experts, expert_linear_bias=True)}, MOE_LAYERS * E * (2 * F + D)),
        ({"shared": SharedExpertsConfig(num_shared_experts=2)}, MOE_LAYERS * 3 * D * 2 * F),
        (
            {"shared": SharedExpertsConfig(num_shared_experts=2, d_shared=7, shared_token_gate=True)},
            MOE_LAYERS * (3 * D * 14 + D),
        ),
        ({"pattern": LayerPatternConfig(explicit=())}, MOE_LAYERS * (3 * D * 20 - E * D - E * 3 * D * F)),
    ],
)
def test_what_an_option_adds(changes, added):
    assert extra(**changes) == added


def test_dense_model_is_all_active():
    count = count_parameters(replace(SMALL, pattern=LayerPatternConfig(explicit=())))
    assert count.active == count.total
    assert (count.router, count.experts, count.shared) == (0, 0, 0)


def test_non_embedding_leaves_out_an_untied_output_projection_too():
    tied, untied = count_parameters(SMALL), count_parameters(replace(SMALL, tie_embeddings=False))
    assert untied.active - tied.active == V * D
    assert untied.active_non_embedding == tied.active_non_embedding


def test_top_k_over_the_experts_with_weights_is_bounded_by_them():
    router = RouterConfig(num_experts=2, num_zero_experts=6, top_k=4)
    count = count_parameters(replace(SMALL, router=router))
    assert count.active_experts == count.experts


def test_shared_width():
    assert MoEConfig(d_model=D, d_expert=F).shared_width == 0
    assert MoEConfig(d_model=D, d_expert=F, num_shared_experts=3).shared_width == 3 * F
    assert MoEConfig(d_model=D, d_expert=F, num_shared_experts=3, d_shared=4).shared_width == 12


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 300))
def test_active_is_total_exactly_when_all_experts_are_used(experts, top_k, width):
    top_k = min(experts, top_k)
    router = RouterConfig(num_experts=experts, top_k=top_k, renormalize=False)
    count = count_parameters(ModelConfig(router=router, experts=ExpertsConfig(d_expert=width)))
    assert (count.active == count.total) == (top_k == experts)
    assert count.active_experts * experts == count.experts * top_k


# Published models, built on the meta device with transformers 5.23: total, and active with the embedding.

MIXTRAL_8X7B = ModelConfig(
    vocab_size=32_000,
    d_model=4096,
    num_layers=32,
    tie_embeddings=False,
    attention=GQAConfig(num_heads=32, num_kv_heads=8, qk_norm=False),
    router=RouterConfig(num_experts=8, top_k=2),
    experts=ExpertsConfig(d_expert=14_336),
)
QWEN3_30B_A3B = ModelConfig(
    vocab_size=151_936,
    d_model=2048,
    num_layers=48,
    tie_embeddings=False,
    attention=GQAConfig(num_heads=32, num_kv_heads=4, head_dim=128),
    router=RouterConfig(num_experts=128, top_k=8),
    experts=ExpertsConfig(d_expert=768),
)
QWEN15_MOE = ModelConfig(
    vocab_size=151_936,
    d_model=2048,
    num_layers=24,
    tie_embeddings=False,
    attention=GQAConfig(num_heads=16, num_kv_heads=16, qk_norm=False, qkv_bias=True),
    router=RouterConfig(num_experts=60, top_k=4, renormalize=False),
    experts=ExpertsConfig(d_expert=1408),
    shared=SharedExpertsConfig(num_shared_experts=1, d_shared=5632, shared_token_gate=True),
)


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [
        (MIXTRAL_8X7B, 46_702_792_704, 12_879_925_248),
        (QWEN3_30B_A3B, 30_532_122_624, 3_353_032_704),
        (QWEN15_MOE, 14_315_784_192, 2_689_173_504),
    ],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B", "Qwen1.5-MoE-A2.7B"],
)
def test_published_models(model, total, active):
    count = count_parameters(model)
    assert (count.total, count.active) == (total, active)


# Bytes.


def test_bytes_of_the_weights():
    total = count_parameters(SMALL).total
    assert count_bytes(SMALL, 4) == 4 * total
    assert count_bytes(SMALL, 0.5) == (total + 1) // 2


def test_bytes_of_the_key_value_cache():
    assert count_kv_bytes(SMALL, 2) == LAYERS * 2 * G * P * 2
    assert count_kv_bytes(QWEN3_30B_A3B, 2) == 98_304
    assert count_kv_bytes(replace(SMALL, num_layers=3), 0.25) == 18


# FLOPs.


def test_flops_of_a_forward_pass_by_hand():
    length = 7
    moe = 2 * E * D + K * 6 * D * F
    hand = 2 * V * D + LAYERS * (2 * ATTENTION + 4 * length * H * P) + 6 * D * 20 + MOE_LAYERS * moe
    assert count_flops(SMALL, length, training=False) == hand
    assert count_flops(SMALL, length, training=True) == 3 * hand


def test_flops_of_scores_and_values_grow_with_the_sequence():
    flops = [count_flops(SMALL, length, training=False) for length in (1, 2, 101)]
    assert flops[1] - flops[0] == LAYERS * 4 * H * P
    assert flops[2] - flops[0] == 100 * LAYERS * 4 * H * P


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"tie_embeddings": False}, 0),
        ({"mlp": replace(SMALL.mlp, mlp_activation="relu2")}, -2 * D * 20),
        ({"experts": replace(SMALL.experts, activation="relu2")}, -2 * MOE_LAYERS * K * D * F),
        ({"experts": replace(SMALL.experts, expert_linear_bias=True)}, 0),
        ({"attention": replace(SMALL.attention, qkv_bias=True)}, 0),
        (
            {"shared": SharedExpertsConfig(num_shared_experts=1, shared_token_gate=True)},
            2 * MOE_LAYERS * (3 * D * F + D),
        ),
        ({"router": replace(SMALL.router, noisy_top_k=True)}, 0),
    ],
)
def test_flops_that_an_option_adds_to_a_forward_pass(changes, added):
    changed = count_flops(replace(SMALL, **changes), 7, training=False)
    assert changed - count_flops(SMALL, 7, training=False) == added


def test_noise_of_the_router_costs_only_in_training():
    noisy = replace(SMALL, router=replace(SMALL.router, noisy_top_k=True))
    difference = count_flops(noisy, 7, training=True) - count_flops(SMALL, 7, training=True)
    assert difference == 3 * 2 * MOE_LAYERS * E * D
