"""MiMo-V2-Flash (Xiaomi 2025): narrow values, windows with sinks in most layers, fewer keys in the others.

Read in both spellings: the published one (hybrid_layer_pattern, moe_layer_freq, swa_*) and that of
transformers (layer_types, mlp_layer_types, rope_parameters by kind of layer). Written in both at once. The
published sliding_window_size leaves the query's own position out. Layers of multi-token prediction are left
out, as in transformers.
"""

from dataclasses import replace
from typing import Any

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
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
from moeworks.families.weights import ATTENTION, DENSE, MOE, NORMS, SELECTION_BIAS, TOP

_PARTIAL = 0.334


def _read(config: Json, draft: Json) -> None:
    layers, attention = draft["num_layers"], draft["attention"]
    heads, width = attention["num_heads"], take(config, "head_dim")
    kv_heads, v_width = take(config, "num_key_value_heads"), take(config, "v_head_dim")
    same = (("num_attention_heads", heads), ("head_dim", width), ("v_head_dim", v_width))
    for key, value in same:
        other = take(config, f"swa_{key}", value)
        check(other == value, f"swa_{key}", other, f"must be {key} = {value}")
    attention |= {
        "head_dim": width,
        "v_head_dim": v_width,
        "qkv_bias": bool(config.pop("attention_bias", False)),
    }
    attention["value_scale"] = config.pop("attention_value_scale")
    full = {**attention, "num_kv_heads": kv_heads, "rope": dict(attention["rope"])}
    sliding = {**full, "num_kv_heads": take(config, "swa_num_key_value_heads", 2 * kv_heads)}
    sliding |= {"window": _window(config), "rope": dict(attention["rope"])}
    full["sinks"] = bool(config.pop("add_full_attention_sink_bias", False))
    sliding["sinks"] = bool(take(config, "add_swa_attention_sink_bias", True))
    _read_ropes(config, full, sliding)
    default = [i != 0 and (i + 1) % 6 != 0 for i in range(layers)]
    pattern = config.pop("hybrid_layer_pattern", None)
    flags = read_layer_types(config, draft, default if pattern is None else [kind == 1 for kind in pattern])
    put_mixers(draft, full, sliding, flags)
    freq = config.pop("moe_layer_freq", None) or [0] + [1] * (layers - 1)
    if config.get("mlp_layer_types") is None:
        config["mlp_layer_types"] = ["sparse" if flag else "dense" for flag in freq]
    read_sparse_layers(config, draft)


def _window(config: Json) -> int:
    """Positions that a query sees, its own included."""
    before, including = config.pop("sliding_window_size", None), take(config, "sliding_window")
    return including if before is None else before + 1


def _read_ropes(config: Json, full: Json, sliding: Json) -> None:
    by_kind: dict[str, Any] = take(config, "rope_parameters", {})
    share = take(config, "partial_rotary_factor", _PARTIAL)
    thetas = take(config, "rope_theta", 5_000_000.0), take(config, "swa_rope_theta", 10_000.0)
    for (name, mixer), theta in zip(_kinds(full, sliding).items(), thetas, strict=True):
        given = by_kind.pop(name, None) or {"rope_theta": theta, "partial_rotary_factor": share}
        given = {"partial_rotary_factor": _PARTIAL, **given}
        read_rope({"rope_parameters": given}, mixer, mixer["head_dim"], None)
    if by_kind:
        config["rope_parameters"] = by_kind


def _write(model: ModelConfig, config: Json) -> None:
    window, sliding = write_windows(model, config), windowed(model)
    full = next((gqa(model, m) for m in model.mixer_of_layers if not gqa(model, m).window), gqa(model))
    moe, named = model.moe_layers, config["layer_types"]
    ropes = {name: rope_parameters(model, mixer) for name, mixer in _kinds(full, sliding).items()}
    config |= {
        "num_key_value_heads": full.num_kv_heads,
        "head_dim": full.head_dim,
        "v_head_dim": full.v_head_dim,
        "attention_bias": full.qkv_bias,
        "attention_value_scale": full.value_scale,
        "add_full_attention_sink_bias": full.sinks,
        "add_swa_attention_sink_bias": sliding.sinks,
        "hybrid_layer_pattern": [int(name == "sliding_attention") for name in named],
        "moe_layer_freq": [int(i in moe) for i in range(model.num_layers)],
        "layernorm_epsilon": model.norm_eps,
        "rope_parameters": ropes,
        "rope_theta": full.rope_theta,
        "swa_rope_theta": sliding.rope_theta,
        "partial_rotary_factor": ropes["full_attention"].get("partial_rotary_factor", 1.0),
        "swa_num_attention_heads": sliding.num_heads,
        "swa_head_dim": sliding.head_dim,
        "swa_v_head_dim": sliding.v_head_dim,
    }
    if window is not None:
        config |= {"sliding_window": window - 1, "sliding_window_size": window - 1}
        config["swa_num_key_value_heads"] = sliding.num_kv_heads
    write_sparse_layers(model, config)


def _kinds(full: Any, sliding: Any) -> dict[str, Any]:
    return {"full_attention": full, "sliding_attention": sliding}


_DEFAULTS = dict(
    attention_bias=False, attention_value_scale=0.707, head_dim=192, hidden_act="silu", hidden_size=4096,
    intermediate_size=16_384, max_position_embeddings=131_072, moe_intermediate_size=2048, n_group=1,
    n_routed_experts=256, norm_topk_prob=True, num_attention_heads=64, num_experts_per_tok=8,
    num_hidden_layers=48, num_key_value_heads=4, rms_norm_eps=1e-05, routed_scaling_factor=1.0,
    sliding_window=129, tie_word_embeddings=False, topk_group=1, v_head_dim=128, vocab_size=152_576,
)  # fmt: skip

FAMILY = Family(
    name="mimo_v2_flash",
    model_types=("mimo_v2_flash",),
    architecture="MiMoV2FlashForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False),
        router=RouterConfig(score="sigmoid", selection_bias=True),
    ),
    defaults=_DEFAULTS,
    null=dict(routed_scaling_factor=1.0, attention_value_scale=1.0),
    fields=(
        *(replace(f, also=("layernorm_epsilon",)) if f.path == "norm_eps" else f for f in DECODER),
        *GQA,
        Field("n_routed_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("n_group", "router.num_groups"),
        Field("topk_group", "router.top_k_groups"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("routed_scaling_factor", "router.routing_scale"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
    ),
    fixed={"hidden_act": ("silu",), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    harmless=frozenset({"attention_chunk_size", "num_nextn_predict_layers"}),
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *ATTENTION,
            Rule("self_attn.attention_sink_bias", "attention.sinks"),
            *DENSE,
            *MOE,
            *SELECTION_BIAS,
        ),
        ignored=("model.mtp.*",),
        renamed=((".self_attn.sinks", ".self_attn.attention_sink_bias"),),
    ),
    read=_read,
    write=_write,
    presets={
        "mimo-v2-flash": dict(
            add_full_attention_sink_bias=False, add_swa_attention_sink_bias=True, attention_value_scale=0.707,
            head_dim=192, hidden_size=4096, intermediate_size=16_384, layernorm_epsilon=1e-5,
            hybrid_layer_pattern=[int(i != 0 and (i + 1) % 6 != 0) for i in range(48)],
            max_position_embeddings=262_144, moe_intermediate_size=2048, moe_layer_freq=[0] + [1] * 47,
            n_group=1, n_routed_experts=256, norm_topk_prob=True, num_attention_heads=64,
            num_experts_per_tok=8,
            num_hidden_layers=48, num_key_value_heads=4, partial_rotary_factor=0.334, rope_theta=5_000_000,
            routed_scaling_factor=None, sliding_window=128, sliding_window_size=128, swa_head_dim=192,
            swa_num_attention_heads=64, swa_num_key_value_heads=8, swa_rope_theta=10_000, swa_v_head_dim=128,
            topk_group=1, v_head_dim=128, vocab_size=152_576,
        ),
    },
)  # fmt: skip
