"""Mellum 2 (JetBrains 2026): Qwen3-MoE's layers, windows in some of them, and a rotation for either kind.

Its rotations are written as `rope_parameters` by kind of layer: transformers knows no older spelling.
"""

from dataclasses import replace

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import (
    DECODER,
    GQA,
    gqa,
    put_mixers,
    read_layer_types,
    read_rope,
    read_sparse_layers,
    rope_parameters,
    windowed,
    write_sparse_layers,
    write_windows,
)
from moeworks.families.weights import QWEN_MOE

_THETAS = {"full_attention": 500_000.0, "sliding_attention": 10_000.0}


def _read(config: Json, draft: Json) -> None:
    attention = draft["attention"]
    attention["num_kv_heads"] = take(config, "num_key_value_heads")
    attention["head_dim"] = take(config, "head_dim")
    attention["qkv_bias"] = attention["output_bias"] = bool(config.pop("attention_bias", False))
    flags = read_layer_types(config, draft, [False] * draft["num_layers"])
    window = config.pop("sliding_window")
    ropes = take(config, "rope_parameters", {})
    full, sliding = ({**attention, "rope": dict(attention["rope"])} for _ in range(2))
    sliding["window"] = window
    for mixer, (name, theta) in zip((full, sliding), _THETAS.items(), strict=True):
        given = ropes.pop(name, None) or {"rope_type": "default", "rope_theta": theta}
        read_rope({"rope_parameters": given}, mixer, attention["head_dim"], None)
    put_mixers(draft, full, sliding, flags)
    read_sparse_layers(config, draft)
    if ropes:
        config["rope_parameters"] = ropes


def _write(model: ModelConfig, config: Json) -> None:
    config["sliding_window"] = write_windows(model, config)
    full = next((gqa(model, m) for m in model.mixer_of_layers if not gqa(model, m).window), gqa(model))
    config |= {
        "num_key_value_heads": full.num_kv_heads,
        "head_dim": model.gqa_head_dim(full),
        "attention_bias": full.qkv_bias,
        "rope_parameters": {
            "full_attention": rope_parameters(model, full),
            "sliding_attention": rope_parameters(model, windowed(model)),
        },
    }
    write_sparse_layers(model, config)


_YARN = dict(
    rope_type="yarn", rope_theta=500_000.0, factor=16.0, original_max_position_embeddings=8192,
    beta_fast=32.0, beta_slow=1.0, attention_factor=1.2772588722239782,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=2304, intermediate_size=7168,
    max_position_embeddings=131_072, moe_intermediate_size=896, norm_topk_prob=True, num_attention_heads=32,
    num_experts=64, num_experts_per_tok=8, num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-06,
    sliding_window=1024, tie_word_embeddings=False, vocab_size=98_304,
)  # fmt: skip

FAMILY = Family(
    name="mellum",
    model_types=("mellum",),
    architecture="MellumForCausalLM",
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
    # transformers leaves its MTP layer out; so does this. Which layers have windows is in layer_types.
    harmless=frozenset({
        "use_sliding_window", "num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types",
        "mtp_mlp_layer_types",
    }),
    weights=replace(QWEN_MOE, ignored=("mtp.*",)),
    read=_read,
    write=_write,
    presets={
        "mellum2-12b-a2.5b": dict(
            head_dim=128, hidden_size=2304, intermediate_size=7168, max_position_embeddings=131_072,
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 7, moe_intermediate_size=896,
            norm_topk_prob=True, num_attention_heads=32, num_experts=64, num_experts_per_tok=8,
            num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-6, sliding_window=1024,
            rope_parameters=dict(
                full_attention=_YARN,
                sliding_attention=dict(rope_type="default", rope_theta=500_000.0),
            ),
            vocab_size=98_304,
        ),
    },
)  # fmt: skip
