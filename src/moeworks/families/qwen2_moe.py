"""Qwen1.5-MoE and Qwen2-MoE (Qwen team 2024): biased queries, keys and values; one gated shared expert."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig, SharedExpertsConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import (
    DECODER,
    GQA,
    read_gqa,
    read_moe_layers,
    read_windows,
    write_gqa,
    write_moe_layers,
    write_windows,
)
from moeworks.families.weights import ATTENTION, DENSE, MOE, NORMS, TOP, gated


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    read_moe_layers(config, draft)
    windowed, window = config.pop("use_sliding_window", False), config.pop("sliding_window", None)
    last = take(config, "max_window_layers")
    default = [bool(windowed) and i % 2 == 0 and i < last for i in range(draft["num_layers"])]
    read_windows(config, draft, default=default, window=(windowed and window) or None)


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    write_moe_layers(model, config)
    window = write_windows(model, config)
    config |= {"use_sliding_window": window is not None, "sliding_window": window}


WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        *DENSE,
        *MOE,
        *gated("mlp.shared_expert", "mlp.shared"),
        Rule("mlp.shared_expert_gate.weight", "mlp.shared_token_gate.weight"),
    ),
)

_DEFAULTS = dict(
    decoder_sparse_step=1, hidden_act="silu", hidden_size=2048, intermediate_size=5632,
    max_position_embeddings=32_768, max_window_layers=28, moe_intermediate_size=1408, norm_topk_prob=False,
    num_attention_heads=16, num_experts=60, num_experts_per_tok=4, num_hidden_layers=24,
    num_key_value_heads=16, qkv_bias=True, rms_norm_eps=1e-06, rope_theta=10_000.0,
    shared_expert_intermediate_size=5632, sliding_window=4096, tie_word_embeddings=False,
    use_sliding_window=False, vocab_size=151_936,
)  # fmt: skip

FAMILY = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    architecture="Qwen2MoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False, qkv_bias=True),
        router=RouterConfig(renormalize=False),
        shared=SharedExpertsConfig(num_shared_experts=1, shared_token_gate=True),
    ),
    defaults=_DEFAULTS,
    null=dict(sliding_window=None),
    fields=(
        *DECODER,
        *GQA,
        Field("qkv_bias", "attention.qkv_bias"),
        Field("num_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("shared_expert_intermediate_size", "shared.d_shared"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "qwen1.5-moe-a2.7b": dict(
            hidden_size=2048, intermediate_size=5632, max_position_embeddings=8192,
            moe_intermediate_size=1408, norm_topk_prob=False, num_attention_heads=16, num_experts=60,
            num_experts_per_tok=4,
            num_hidden_layers=24, num_key_value_heads=16, rms_norm_eps=1e-6, rope_theta=1e6,
            shared_expert_intermediate_size=5632, vocab_size=151_936,
        ),
        "qwen2-57b-a14b": dict(
            hidden_size=3584, intermediate_size=18_944, max_position_embeddings=131_072,
            moe_intermediate_size=2560, norm_topk_prob=False, num_attention_heads=28, num_experts=64,
            num_experts_per_tok=8, num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-6,
            rope_theta=1e6, shared_expert_intermediate_size=20_480, vocab_size=151_936,
        ),
    },
)  # fmt: skip
