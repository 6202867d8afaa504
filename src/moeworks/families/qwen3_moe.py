"""Qwen3-MoE (Qwen team 2025): normalised queries and keys, no shared expert."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import (
    DECODER,
    GQA,
    gqa,
    read_biased_gqa,
    read_moe_layers,
    write_biased_gqa,
    write_moe_layers,
)
from moeworks.families.weights import QWEN_MOE


def _read(config: Json, draft: Json) -> None:
    read_biased_gqa(config, draft)
    read_moe_layers(config, draft)
    attention = draft["attention"]
    window = config.pop("sliding_window", None)
    attention["window"] = window if config.pop("use_sliding_window", False) else None


def _write(model: ModelConfig, config: Json) -> None:
    write_biased_gqa(model, config)
    write_moe_layers(model, config)
    attention = gqa(model)
    config |= {"use_sliding_window": attention.window is not None, "sliding_window": attention.window}


_BOTH = dict(
    head_dim=128, max_position_embeddings=40_960, norm_topk_prob=True, num_experts=128, num_experts_per_tok=8,
    num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=1e6, vocab_size=151_936,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, decoder_sparse_step=1, hidden_act="silu", hidden_size=2048,
    intermediate_size=6144, max_position_embeddings=32_768, moe_intermediate_size=768, norm_topk_prob=False,
    num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=24,
    num_key_value_heads=4, rms_norm_eps=1e-06, rope_theta=10_000.0, sliding_window=4096,
    tie_word_embeddings=False, use_sliding_window=False, vocab_size=151_936,
)  # fmt: skip

FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    architecture="Qwen3MoeForCausalLM",
    template=ModelConfig(attention=GQAConfig()),
    defaults=_DEFAULTS,
    null=dict(sliding_window=None),
    fields=(
        *DECODER,
        *GQA,
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=QWEN_MOE,
    read=_read,
    write=_write,
    presets={
        "qwen3-30b-a3b": dict(
            **_BOTH, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
            num_attention_heads=32, num_hidden_layers=48,
        ),
        "qwen3-235b-a22b": dict(
            **_BOTH, hidden_size=4096, intermediate_size=12_288, moe_intermediate_size=1536,
            num_attention_heads=64, num_hidden_layers=94,
        ),
        "qwen3-coder-480b-a35b": _BOTH
        | dict(
            hidden_size=6144, intermediate_size=8192, max_position_embeddings=262_144,
            moe_intermediate_size=2560, num_attention_heads=96, num_experts=160, num_hidden_layers=62,
            num_key_value_heads=8, rope_theta=1e7,
        ),
    },
)  # fmt: skip
