"""Hunyuan 3 (Tencent 2026), model_type "hy_v3": normalised heads, DeepSeek-V3's router without groups.

Its multi-token prediction layer is left out, as transformers does.
"""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import (
    DECODER,
    GQA,
    gqa,
    read_gqa,
    read_sparse_layers,
    write_gqa,
    write_sparse_layers,
)
from moeworks.families.weights import ATTENTION, DENSE, NORMS, TOP, experts, gated


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    attention = draft["attention"]
    attention["qkv_bias"] = attention["output_bias"] = bool(config.pop("attention_bias", False))
    read_sparse_layers(config, draft)


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    config["attention_bias"] = gqa(model).qkv_bias
    # Other readers know it by this name.
    config["expert_hidden_dim"] = model.experts.d_expert
    write_sparse_layers(model, config)


_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=1, head_dim=128, hidden_act="silu", hidden_size=4096,
    intermediate_size=13_312, max_position_embeddings=131_072, mlp_bias=False, moe_intermediate_size=1536,
    num_attention_heads=64, num_experts=192, num_experts_per_tok=8, num_hidden_layers=80,
    num_key_value_heads=8, num_shared_experts=1, rms_norm_eps=1e-05, rope_theta=11_158_840.0,
    router_scaling_factor=2.826, tie_word_embeddings=False, vocab_size=120_832,
)  # fmt: skip

FAMILY = Family(
    name="hy_v3",
    model_types=("hy_v3",),
    architecture="HYV3ForCausalLM",
    template=ModelConfig(attention=GQAConfig(), router=RouterConfig(score="sigmoid", selection_bias=True)),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("router_scaling_factor", "router.routing_scale"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("num_shared_experts", "shared.num_shared_experts"),
        Field("first_k_dense_replace", "pattern.first_dense"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "mlp_bias": (False,),
        "qk_norm": (True,),
        "route_norm": (True,),
        "moe_router_use_sigmoid": (True,),
        "moe_router_enable_expert_bias": (True,),
    },
    # In which precision some steps run.
    harmless=frozenset({
        "enable_moe_fp32_combine", "enable_attention_fp32_softmax", "enable_lm_head_fp32",
        "num_nextn_predict_layers",
    }),
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *ATTENTION,
            *DENSE,
            Rule("mlp.router.gate.weight", "mlp.router.weight"),
            Rule("mlp.expert_bias", "mlp.router.expert_bias"),
            experts("mlp.experts"),
            *gated("mlp.shared_mlp", "mlp.shared"),
        ),
        ignored=("model.layers.{n}.*",),
        renamed=(
            (".mlp.gate.weight", ".mlp.router.gate.weight"),
            (".mlp.e_score_correction_bias", ".mlp.expert_bias"),
            (".mlp.shared_experts.", ".mlp.shared_mlp."),
        ),
    ),
    read=_read,
    write=_write,
    presets={
        "hy3-preview": dict(
            first_k_dense_replace=1, head_dim=128, hidden_size=4096, intermediate_size=13_312,
            max_position_embeddings=262_144, moe_intermediate_size=1536, num_attention_heads=64,
            num_experts=192, num_experts_per_tok=8, num_hidden_layers=80, num_key_value_heads=8,
            num_shared_experts=1, rms_norm_eps=1e-5, rope_theta=11_158_840.0, router_scaling_factor=2.826,
            vocab_size=120_832,
        ),
    },
)  # fmt: skip
