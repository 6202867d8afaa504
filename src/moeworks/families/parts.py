"""Pieces of config.json that many families share: plain fields, rotary positions, layer lists."""

from collections.abc import Sequence
from functools import partial
from math import nextafter
from typing import Any

from moeworks.config.codec import to_dict
from moeworks.config.mixers import GQAConfig, MixerConfig, MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.config.rope import RopeConfig
from moeworks.errors import ConfigError, check, nearest
from moeworks.families.base import Field, Json, take

DECODER = (
    Field("vocab_size", "vocab_size"),
    Field("hidden_size", "d_model"),
    Field("num_hidden_layers", "num_layers"),
    Field("max_position_embeddings", "max_seq_len"),
    Field("rms_norm_eps", "norm_eps"),
    Field("tie_word_embeddings", "tie_embeddings"),
)
GQA = (Field("num_attention_heads", "attention.num_heads"),)
GROUPED_ROUTER = (
    Field("n_routed_experts", "router.num_experts", also=("num_local_experts",)),
    Field("num_experts_per_tok", "router.top_k"),
    Field("n_group", "router.num_groups"),
    Field("topk_group", "router.top_k_groups"),
    Field("norm_topk_prob", "router.renormalize"),
    Field("routed_scaling_factor", "router.routing_scale"),
    Field("moe_intermediate_size", "experts.d_expert"),
    Field("intermediate_size", "mlp.d_ff"),
    Field("n_shared_experts", "shared.num_shared_experts"),
    Field("first_k_dense_replace", "pattern.first_dense"),
)
"""The router, experts and pattern of DeepSeek-V3 and those that follow it."""
MLA = (
    Field("num_attention_heads", "attention.num_heads"),
    Field("q_lora_rank", "attention.q_lora_rank"),
    Field("kv_lora_rank", "attention.kv_lora_rank"),
    Field("qk_nope_head_dim", "attention.nope_head_dim"),
    Field("qk_rope_head_dim", "attention.rope_head_dim"),
    Field("v_head_dim", "attention.v_head_dim"),
    Field("attention_bias", "attention.bias"),
)


def read_gqa(config: Json, draft: Json) -> None:
    """Key/value heads, the width of a head and the rotation."""
    attention = draft["attention"]
    attention["num_kv_heads"] = take(config, "num_key_value_heads", attention["num_heads"])
    attention["head_dim"] = take(config, "head_dim", None)
    read_rope(config, attention, _head_dim(draft), draft["max_seq_len"])


def read_biased_gqa(config: Json, draft: Json) -> None:
    """Everything that `read_gqa` reads, and biases on all four projections or on none."""
    read_gqa(config, draft)
    attention = draft["attention"]
    attention["qkv_bias"] = attention["output_bias"] = bool(config.pop("attention_bias", False))


def write_biased_gqa(model: ModelConfig, config: Json) -> None:
    """The reverse of read_biased_gqa."""
    write_gqa(model, config)
    config["attention_bias"] = gqa(model).qkv_bias


def write_gqa(model: ModelConfig, config: Json, mixer: GQAConfig | None = None) -> None:
    """The reverse of read_gqa, for `mixer` or the model's `attention`."""
    mixer = mixer or gqa(model)
    config["num_key_value_heads"] = mixer.num_kv_heads
    if mixer.head_dim is not None:
        config["head_dim"] = mixer.head_dim
    write_rope(mixer.rope_theta, mixer.rope, config, model.gqa_head_dim(mixer))


def gqa(model: ModelConfig, mixer: MixerConfig | None = None) -> GQAConfig:
    """`mixer`, or the model's `attention`, which must be grouped-query attention."""
    mixer = mixer or model.attention
    if not isinstance(mixer, GQAConfig):
        raise ConfigError(f"model.attention.kind = {mixer.kind!r}: this family has 'gqa'")
    return mixer


def mla(model: ModelConfig, mixer: MixerConfig | None = None) -> MLAConfig:
    """`mixer`, or the model's `attention`, which must be latent attention."""
    mixer = mixer or model.attention
    if not isinstance(mixer, MLAConfig):
        raise ConfigError(f"model.attention.kind = {mixer.kind!r}: this family has 'mla'")
    return mixer


# Rotary positions, in the spelling before transformers 5 (rope_theta, rope_scaling) and the one since then
# (rope_parameters). Written in the older one, which every reader knows.

_SCALING_NAMES = {
    "default": "none", "linear": "linear", "yarn": "yarn", "llama3": "llama3", "longrope": "longrope",
    "su": "longrope", "dynamic": "none",
}  # fmt: skip
_SCALING_FIELDS = {
    "linear": ("factor",),
    "yarn": (
        "factor", "original_max_seq_len", "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale",
        "mscale_all_dim",
    ),
    "llama3": ("factor", "original_max_seq_len", "low_freq_factor", "high_freq_factor"),
    "longrope": (
        "factor", "original_max_seq_len", "attention_factor", "short_factors", "long_factors", "short_mscale",
        "long_mscale",
    ),
    "none": (),
    "ntk_alpha": ("factor",),
}  # fmt: skip
_REQUIRED = {
    "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"), "su": ("short_factor", "long_factor"),
}  # fmt: skip
"""What a scaling must say."""
_RENAMED = {
    "original_max_seq_len": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}


def read_rope(config: Json, mixer: Json, head_dim: int, context: int | None) -> None:
    """The rotation of one mixer of the draft from either spelling.

    `context` is the original one where a scaling does not say it; None: it must.
    """
    old, new = take(config, "rope_scaling", {}), take(config, "rope_parameters", {})
    given: Json = dict(old or new)
    theta, share = config.pop("rope_theta", None), take(config, "partial_rotary_factor", 1.0)
    mixer["rope_theta"] = float(take({"rope_theta": given.pop("rope_theta", theta)}, "rope_theta"))
    rope: Json = mixer["rope"]
    if (turned := int(head_dim * take(given, "partial_rotary_factor", share))) != head_dim:
        rope["dim"] = turned
    older = given.pop("type", "default")
    name = given.pop("rope_type", older)
    if name not in _SCALING_NAMES:
        raise ConfigError(f"rope_scaling.rope_type = {name!r}: unknown; {nearest(name, _SCALING_NAMES)}")
    for key in _REQUIRED.get(name, ()):
        rule = f"missing; rope_type = {name!r} needs it"
        if given.get(key) is None:
            raise ConfigError(f"rope_scaling.{key}: {rule}")
    if name == "dynamic":
        # The base grows with texts longer than max_position_embeddings, which no model here accepts.
        given.pop("factor")
    rope["scaling"] = scaling = _SCALING_NAMES[name]
    outside = config.pop("original_max_position_embeddings", None)
    if scaling in ("yarn", "llama3", "longrope"):
        origin = outside or take(given, "original_max_position_embeddings", context, null=False)
        given["original_max_position_embeddings"] = origin
        if scaling == "longrope" and given.get("factor") is None and context is not None:
            given["factor"] = context / origin
    for entry in _SCALING_FIELDS[scaling]:
        value = given.pop(_RENAMED.get(entry, entry), None)
        if value is not None:
            rope[entry] = value
    rest = {key: value for key, value in given.items() if value is not None and not _is_unused(key, scaling)}
    check(not rest, "rope_scaling", rest, f"not parameters of rope_type = {name!r}")


def _is_unused(key: str, scaling: str) -> bool:
    """Parameters that stand in published configs without an effect."""
    return key in ("finetuned", "original_max_position_embeddings") and scaling in ("none", "linear")


def write_rope(theta: float, rope: RopeConfig, config: Json, head_dim: int) -> None:
    """The rotation in the spelling that every reader knows."""
    config["rope_theta"] = theta
    config["rope_scaling"] = None
    if rope.dim is not None:
        share = rope.dim / head_dim
        # Readers truncate the product.
        config["partial_rotary_factor"] = nextafter(share, 1) if int(head_dim * share) < rope.dim else share
    if rope.scaling == "none":
        return
    name = "dynamic" if rope.scaling == "ntk_alpha" else rope.scaling
    written: Json = {"rope_type": name}
    for entry in _SCALING_FIELDS[rope.scaling]:
        value = getattr(rope, entry)
        if value is not None:
            written[_RENAMED.get(entry, entry)] = list(value) if isinstance(value, tuple) else value
    config["rope_scaling"] = written


def rope_parameters(model: ModelConfig, mixer: GQAConfig) -> Json:
    """The rotation of one mixer in the spelling since transformers 5, which may differ between layers."""
    old: Json = {}
    write_rope(mixer.rope_theta, mixer.rope, old, model.gqa_head_dim(mixer))
    return {"rope_type": "default"} | (old.pop("rope_scaling") or {}) | old


# Layers that differ.


def read_windows(
    config: Json,
    draft: Json,
    *,
    default: Sequence[bool],
    window: int | None,
    turn_full: bool = True,
) -> None:
    """Sliding windows in some layers: those that `layer_types` names, or else those of `default`.

    Layers without a window have no rotary positions unless `turn_full`.
    """
    flags = read_layer_types(config, draft, default)
    full, rope = draft["attention"], draft["attention"]["rope"]
    check(
        window is not None or not any(flags),
        "sliding_window",
        window,
        "is needed by the layers that have one",
    )
    sliding = {**full, "window": window}
    if not turn_full:
        full = {**full, "rope": {**rope, "enabled": False}}
    put_mixers(draft, full, sliding, flags)


def read_layer_types(config: Json, draft: Json, default: Sequence[bool]) -> list[bool]:
    """Which layers `layer_types` calls sliding; `default` where it is absent."""
    names = config.pop("layer_types", None)
    known = ("sliding_attention", "full_attention")
    for name in names or ():
        check(name in known, "layer_types", name, f"must be {' or '.join(known)}")
    flags = [name == known[0] for name in names] if names is not None else list(default)
    layers = draft["num_layers"]
    check(len(flags) == layers, "layer_types", names, f"must name each of the {layers} layers")
    return flags


def put_mixers(draft: Json, plain: Json, flagged: Json, flags: Sequence[bool]) -> None:
    """`flagged` as the mixer of the layers with a flag, `plain` as that of the others."""
    draft["attention"] = flagged if all(flags) else plain
    if any(flags) and not all(flags):
        draft["mixers"] = [flagged]
        draft["layer_mixers"] = [int(flag) for flag in flags]


def windowed(model: ModelConfig) -> GQAConfig:
    """The mixer of the layers that have a window; the model's `attention` when none has."""
    return next((m for m in map(partial(gqa, model), model.mixer_of_layers) if m.window), gqa(model))


def write_windows(model: ModelConfig, config: Json) -> int | None:
    """`layer_types` of a model whose layers differ in their windows; returns the window."""
    windows = [gqa(model, mixer).window for mixer in model.mixer_of_layers]
    config["layer_types"] = [
        "full_attention" if window is None else "sliding_attention" for window in windows
    ]
    return next((window for window in windows if window is not None), None)


def read_sparse_layers(config: Json, draft: Json) -> None:
    """`mlp_layer_types`, where there is one: which layers hold a MoE, by name."""
    kinds = config.pop("mlp_layer_types", None)
    if kinds is None:
        return
    layers = draft["num_layers"]
    check(set(kinds) <= {"dense", "sparse"}, "mlp_layer_types", kinds, "must be 'dense' or 'sparse'")
    check(len(kinds) == layers, "mlp_layer_types", kinds, f"must name each of the {layers} layers")
    sparse = [i for i, kind in enumerate(kinds) if kind == "sparse"]
    first = sparse[0] if sparse else layers
    if sparse == list(range(first, layers)):
        draft["pattern"]["first_dense"] = first
    else:
        draft["pattern"] |= {"first_dense": 0, "explicit": sparse}


def write_sparse_layers(model: ModelConfig, config: Json) -> None:
    """The reverse of read_sparse_layers."""
    moe = model.moe_layers
    config["mlp_layer_types"] = ["sparse" if i in moe else "dense" for i in range(model.num_layers)]


def read_moe_layers(config: Json, draft: Json) -> None:
    """Qwen's pattern: every decoder_sparse_step-th layer is a MoE, but those in mlp_only_layers."""
    step, dense = take(config, "decoder_sparse_step", 1), set(take(config, "mlp_only_layers", []))
    layers = range(draft["num_layers"])
    if dense:
        draft["pattern"]["explicit"] = [i for i in layers if i not in dense and (i + 1) % step == 0]
    else:
        draft["pattern"]["every"] = step


def write_moe_layers(model: ModelConfig, config: Json) -> None:
    """The reverse of read_moe_layers."""
    if model.pattern.explicit is None:
        config |= {"decoder_sparse_step": model.pattern.every, "mlp_only_layers": []}
    else:
        layers = set(range(model.num_layers)) - set(model.moe_layers)
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": sorted(layers)}


def mixer_draft(mixer: MixerConfig) -> Json:
    """`mixer` as it stands in a draft."""
    return to_dict(mixer)


def _head_dim(draft: Json) -> int:
    attention: dict[str, Any] = draft["attention"]
    return attention["head_dim"] or draft["d_model"] // attention["num_heads"]
