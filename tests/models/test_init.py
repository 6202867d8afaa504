from dataclasses import replace

import pytest
import torch
from tiny_families import TINY, tiny_config
from torch import nn

from moeworks import Decoder, ModelConfig
from moeworks.config.choices import CustomChoice
from moeworks.config.mixers import GatedDeltaConfig, MixtureOfAttentionConfig
from moeworks.config.model import (
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    MLPConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.layers.routers import register_router
from moeworks.models import decoder as decoder_module
from moeworks.models.init import EMBEDDING_STD
from moeworks.ops.fixed import even_routing

CONFIG = ModelConfig(
    vocab_size=300,
    d_model=64,
    num_layers=8,
    tie_embeddings=False,
    attention=GQAConfig(qkv_bias=True),
    pattern=LayerPatternConfig(first_dense=1),
    mlp=MLPConfig(d_ff=96, mlp_bias=True),
    router=RouterConfig(num_experts=8, top_k=2, router_bias=True, selection_bias=True),
    experts=ExpertsConfig(d_expert=96, expert_linear_bias=True),
    shared=SharedExpertsConfig(num_shared_experts=1),
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Decoder(CONFIG).state_dict()


def uniform_std(fan_in: int) -> float:
    """Of U(-1, 1) / sqrt(fan_in)."""
    return (3 * fan_in) ** -0.5


def test_embeddings(weights):
    for name in ("embed.weight", "lm_head.weight"):
        assert weights[name].std().item() == pytest.approx(EMBEDDING_STD, rel=0.02)


@pytest.mark.parametrize(
    ("name", "fan_in"),
    [
        ("layers.0.attention.o_proj.weight", 64),
        ("layers.0.mlp.down_proj.weight", 96),
        ("layers.3.mlp.experts.down_proj", 96),
        ("layers.3.mlp.shared.down_proj.weight", 96),
    ],
)
def test_what_writes_into_the_stream_is_scaled_by_depth(weights, name, fan_in):
    want = uniform_std(fan_in) / (2 * CONFIG.num_layers) ** 0.5
    assert weights[name].std().item() == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attention.q_proj.weight",
        "layers.0.mlp.gate_up_proj.weight",
        "layers.3.mlp.experts.gate_up_proj",
        "layers.3.mlp.shared.gate_up_proj.weight",
        "layers.3.mlp.router.weight",
    ],
)
def test_everything_else_keeps_the_scale_of_its_layer(weights, name):
    assert weights[name].std().item() == pytest.approx(uniform_std(64), rel=0.06)


def test_experts_match_the_dense_block_of_the_same_model(weights):
    for part in ("gate_up_proj", "down_proj"):
        dense = weights[f"layers.0.mlp.{part}.weight"]
        for expert in weights[f"layers.3.mlp.experts.{part}"]:
            assert expert.std().item() == pytest.approx(dense.std().item(), rel=0.04)


def test_all_biases_start_at_0_and_all_norms_at_1(weights):
    for name, value in weights.items():
        if name.endswith("bias"):
            assert not value.any(), name
        if "norm" in name:
            assert (value == 1).all(), name


def test_the_variance_of_the_stream_does_not_grow_with_depth():
    tokens = torch.randint(300, (4, 32))
    sizes = []
    for layers in (2, 16):
        torch.manual_seed(0)
        model = Decoder(replace(CONFIG, num_layers=layers, pattern=LayerPatternConfig()))
        model.final_norm = torch.nn.Identity()
        model.lm_head.weight = torch.nn.Parameter(torch.eye(64))
        with torch.no_grad():
            sizes.append(model(tokens).logits_BLV.std().item())
    assert 0.7 < sizes[1] / sizes[0] < 1.4


def test_two_seeds_differ_and_one_seed_repeats():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(Decoder(CONFIG).state_dict())
    first, again, other = models
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


_BY_NAME = ("o_proj.weight", "down_proj.weight", "experts.down_proj", "experts.o_proj")


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_seed_gives_every_family_the_values_that_the_names_of_its_parameters_ask_for(name, monkeypatch):
    config = tiny_config(name)
    torch.manual_seed(0)
    got = Decoder(config).state_dict()
    monkeypatch.setattr(decoder_module, "init_stream_", lambda *_: None)
    torch.manual_seed(0)
    model = Decoder(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in ("embed.weight", "lm_head.weight"):
            nn.init.normal_(parameter, std=EMBEDDING_STD)
        elif parameter_name.endswith((".bias", "_bias")):
            start = 1.0 if parameter_name.endswith("decay_bias") else 0.0
            assert (parameter == start).all(), parameter_name
        elif parameter_name.endswith(_BY_NAME):
            parameter.data.mul_((2 * config.num_layers) ** -0.5)
    for parameter_name, value in model.state_dict().items():
        assert torch.equal(got[parameter_name], value), parameter_name


def test_the_decay_bias_of_a_gated_delta_layer_starts_at_1_in_a_decoder_too():
    model = Decoder(replace(CONFIG, attention=GatedDeltaConfig()))
    assert all((block.attention.decay_bias == 1).all() for block in model.layers)


def test_the_output_projections_of_a_mixture_of_attention_are_scaled_by_depth():
    attention = MixtureOfAttentionConfig(num_experts=8, top_k=2, num_kv_heads=4, head_dim=16)
    matrix = Decoder(replace(CONFIG, attention=attention)).layers[0].attention.experts.o_proj
    want = uniform_std(matrix.shape[-1]) / (2 * CONFIG.num_layers) ** 0.5
    assert matrix.std().item() == pytest.approx(want, rel=0.05)


class _NamedLikeOthers(nn.Module):
    """A router with a bias, and a projection that has the name of one that writes into the stream."""

    def __init__(self, config, d_model):
        super().__init__()
        self.experts = config.num_experts
        self.down_proj = nn.Linear(d_model, config.num_experts)
        self.offset_bias = nn.Parameter(torch.full((config.num_experts,), 3.0))
        self.written = {name: p.detach().clone() for name, p in self.named_parameters()}

    def forward(self, x_TD, context):
        ids_TK = torch.arange(2).expand(x_TD.shape[0], 2)
        return even_routing(ids_TK, self.experts, 0.5, context, x_TD)


def test_a_custom_router_keeps_the_initial_values_that_it_gave_itself():
    register_router("named_like_others", _NamedLikeOthers)
    router = RouterConfig(num_experts=8, top_k=2, choice=CustomChoice(name="named_like_others"))
    for block in Decoder(replace(CONFIG, router=router)).layers[1:]:
        route = block.mlp.router.route
        for name, parameter in route.named_parameters():
            assert torch.equal(parameter, route.written[name]), name
