"""The counts of a config against the module that it builds and the FLOPs that torch sees it do."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moeworks.config import (
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    ModelConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.count import count_bytes, count_flops, count_parameters
from moeworks.config.presets import dense_twin, preset
from moeworks.models.decoder import Decoder

SMALL = ModelConfig(
    vocab_size=48,
    d_model=16,
    num_layers=3,
    max_seq_len=32,
    attention=GQAConfig(num_heads=4, num_kv_heads=2),
    mlp=MLPConfig(d_ff=24),
    router=RouterConfig(num_experts=6, top_k=2),
    experts=ExpertsConfig(d_expert=12),
)
ROUTER, EXPERTS, ATTENTION = SMALL.router, SMALL.experts, SMALL.attention

CONFIGS = {
    "moe": SMALL,
    "dense": replace(SMALL, pattern=LayerPatternConfig(explicit=())),
    "dense_relu2_bias": replace(
        SMALL,
        pattern=LayerPatternConfig(explicit=()),
        mlp=MLPConfig(d_ff=24, mlp_activation="relu2", mlp_bias=True),
    ),
    "every_second_layer": replace(SMALL, pattern=LayerPatternConfig(every=2)),
    "shared": replace(SMALL, shared=SharedExpertsConfig(num_shared_experts=2, d_shared=5)),
    "shared_gate": replace(SMALL, shared=SharedExpertsConfig(num_shared_experts=1, shared_token_gate=True)),
    "qkv_bias": replace(SMALL, attention=replace(ATTENTION, qkv_bias=True, qk_norm=False)),
    "head_dim": replace(SMALL, attention=replace(ATTENTION, head_dim=6)),
    "untied": replace(SMALL, tie_embeddings=False),
    "relu2": replace(SMALL, experts=replace(EXPERTS, activation="relu2")),
    "expert_bias": replace(SMALL, experts=replace(EXPERTS, expert_linear_bias=True)),
    "relu_expert_bias": replace(SMALL, experts=replace(EXPERTS, activation="relu", expert_linear_bias=True)),
    "router_bias": replace(SMALL, router=replace(ROUTER, router_bias=True)),
    "selection_bias": replace(SMALL, router=replace(ROUTER, selection_bias=True)),
    "noisy_top_k": replace(SMALL, router=replace(ROUTER, noisy_top_k=True)),
    "smoke": preset("smoke").model,
    "smoke_twin": dense_twin(preset("smoke")).model,
}
BATCH, LENGTH = 3, 8


@pytest.fixture(params=CONFIGS)
def model_config(request) -> ModelConfig:
    return CONFIGS[request.param]


def build(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config, backend="reference")


def elements(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_total_is_the_number_of_parameters(model_config):
    model = build(model_config)
    assert count_parameters(model_config).total == elements(model.parameters())


def test_components_are_those_of_the_module(model_config):
    named, count = dict(build(model_config).named_parameters()), count_parameters(model_config)

    def size(*parts: str) -> int:
        return elements(p for name, p in named.items() if any(part in name for part in parts))

    assert count.embedding == size("embed.")
    assert count.lm_head == size("lm_head.")
    assert count.norms == size("norm.")
    assert count.router == size(".router.")
    assert count.experts == size(".experts.")
    assert count.shared == size(".shared.", ".shared_token_gate.")


def test_bytes_are_those_of_the_module(model_config):
    model = build(model_config)
    assert count_bytes(model_config, 4) == sum(p.numel() * p.element_size() for p in model.parameters())


def measured_flops(model: Decoder, config: ModelConfig, *, training: bool) -> int:
    """What torch counts; its tables lack the CPU's flash kernel, so attention takes the plain path."""
    tokens = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % config.vocab_size
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(training):
        logits = model.train(training)(tokens).logits_BLV
        if training:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_flops_are_those_that_torch_counts(model_config, training):
    measured = measured_flops(build(model_config), model_config, training=training)
    assert BATCH * LENGTH * count_flops(model_config, LENGTH, training=training) == measured


def test_zero_computation_experts_make_the_flops_an_upper_bound():
    config = replace(SMALL, router=replace(ROUTER, num_identity_experts=2, num_zero_experts=1))
    measured = measured_flops(build(config), config, training=False)
    dense = replace(config, pattern=LayerPatternConfig(explicit=()))
    least = count_flops(dense, LENGTH, training=False) - 6 * 3 * 16 * 24
    assert BATCH * LENGTH * least < measured < BATCH * LENGTH * count_flops(config, LENGTH, training=False)
