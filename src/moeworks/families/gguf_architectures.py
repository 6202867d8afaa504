"""What completes the config of each architecture of llama.cpp, and names its family here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeworks.config.weight_rules import WeightMap
from moeworks.errors import check
from moeworks.families import gguf_weights
from moeworks.families.base import Json, take
from moeworks.families.gguf_rope import decimal, longrope
from moeworks.families.gguf_weights import LONG_FACTORS, SHORT_FACTORS

_SOFTMAX, _SIGMOID = 1, 2
"""Gating functions (llama.cpp's enumeration)."""


@dataclass(frozen=True)
class GgufMetadata:
    """What a GGUF file says of its model, consumed while it is read."""

    keys: Json
    """Metadata without the architecture's prefix; what is read is taken out."""
    names: set[str]
    """The names of its tensors."""
    values: Callable[[str], Sequence[float]]
    """From a tensor's name to its values; for small tensors."""

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key, which is removed. Raises ConfigError when it is absent and has no default."""
        return take(self.keys, key, *default)

    def number(self, key: str, *default: float) -> float:
        """The value of a key as the short decimal that a float32 was made from; the key is removed."""
        return decimal(self.take(key, *default))

    def only(self, key: str, *accepted: Any) -> None:
        """Raise ConfigError when a key has a value other than `accepted`; it may be absent."""
        value = self.keys.pop(key, accepted[0])
        check(value in accepted, key, value, f"only {' or '.join(map(str, accepted))} is known here")

    def biased(self, name: str) -> bool:
        """Whether the first layer has this bias."""
        return f"blk.0.{name}.bias" in self.names


def _llama(metadata: GgufMetadata, config: Json) -> str:
    if (experts := metadata.take("expert_count", 0)) == 0:
        metadata.keys.pop("expert_used_count", None)
        return "llama"
    config |= {"num_local_experts": experts, "num_experts_per_tok": metadata.take("expert_used_count")}
    return "mixtral"


def _experts(metadata: GgufMetadata, config: Json, count: str = "num_experts") -> None:
    config |= {
        count: metadata.take("expert_count"),
        "num_experts_per_tok": metadata.take("expert_used_count"),
        "moe_intermediate_size": metadata.take("expert_feed_forward_length", config["intermediate_size"]),
    }


def _qwen2moe(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config)
    config["shared_expert_intermediate_size"] = metadata.take(
        "expert_shared_feed_forward_length", config["intermediate_size"]
    )
    return "qwen2_moe"


def _qwen3moe(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config)
    config["norm_topk_prob"] = True
    return "qwen3_moe"


def _olmoe(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config)
    check(
        config.pop("moe_intermediate_size") == config["intermediate_size"], "expert_feed_forward_length",
        config["intermediate_size"], "differs from feed_forward_length",
    )  # fmt: skip
    return "olmoe"


def _grouped(metadata: GgufMetadata, config: Json) -> None:
    """Router, experts and pattern of DeepSeek-V3 and those that follow it."""
    _experts(metadata, config, "n_routed_experts")
    config |= {
        "n_shared_experts": metadata.take("expert_shared_count", 0),
        "first_k_dense_replace": metadata.take("leading_dense_block_count", 0),
        "norm_topk_prob": bool(metadata.take("expert_weights_norm", False)),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
        "n_group": metadata.take("expert_group_count", 1),
        "topk_group": metadata.take("expert_group_used_count", 1),
    }
    metadata.keys.pop("expert_shared_feed_forward_length", None)


def _deepseek2(metadata: GgufMetadata, config: Json) -> str:
    """V2, V3 and what has their shape. Split files say what attention is before llama.cpp joins its heads."""
    width, turned = config.pop("head_dim"), metadata.take("rope.dimension_count")
    width = metadata.take("attention.key_length_mla", width)
    value_width = metadata.take("attention.value_length", None)
    config |= {
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": metadata.take("attention.q_lora_rank", None),
        "kv_lora_rank": metadata.take("attention.kv_lora_rank"),
        "qk_nope_head_dim": width - turned,
        "qk_rope_head_dim": turned,
        "v_head_dim": metadata.take("attention.value_length_mla", value_width),
        "num_nextn_predict_layers": 0,  # llama.cpp leaves them out
    }
    _grouped(metadata, config)
    logarithm = metadata.keys.pop("rope.scaling.yarn_log_multiplier", None)
    if logarithm is not None and "rope_scaling" in config:
        # A tenth of mscale_all_dim; in every published config mscale equals it.
        config["rope_scaling"] |= dict.fromkeys(("mscale", "mscale_all_dim"), decimal(10 * logarithm))
    gating = metadata.take("expert_gating_func", _SOFTMAX)
    check(gating in (_SOFTMAX, _SIGMOID), "expert_gating_func", gating, "must be softmax (1) or sigmoid (2)")
    if gating == _SIGMOID:
        return "deepseek_v3"
    if config["n_group"] > 1:
        config["topk_method"] = "group_limited_greedy"
    return "deepseek_v2"


def _deepseek(metadata: GgufMetadata, config: Json) -> str:
    _grouped(metadata, config)
    scale = config.pop("routed_scaling_factor")
    check(scale == 1, "expert_weights_scale", scale, "must be 1")
    del config["n_group"], config["topk_group"]
    config["model_type"] = "deepseek"
    return "deepseek_v1"


def _glm4moe(metadata: GgufMetadata, config: Json) -> str:
    """GLM-4.5; its blocks count those for multi-token prediction."""
    _grouped(metadata, config)
    metadata.only("expert_gating_func", _SIGMOID)
    ahead = metadata.take("nextn_predict_layers", 0)
    config |= {
        "num_hidden_layers": config["num_hidden_layers"] - ahead,
        "num_nextn_predict_layers": ahead,
        "attention_bias": metadata.biased("attn_q"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in metadata.names,
        "partial_rotary_factor": 1.0,  # unless rope.dimension_count says less
    }
    return "glm4_moe"


def _dots1(metadata: GgufMetadata, config: Json) -> str:
    _grouped(metadata, config)
    metadata.only("expert_gating_func", _SIGMOID)
    config["attention_bias"] = metadata.biased("attn_q")
    return "dots1"


def _gpt_oss(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config, "num_local_experts")
    config["intermediate_size"] = config.pop("moe_intermediate_size")
    config["sliding_window"] = metadata.take("attention.sliding_window", 128)
    config["attention_bias"] = metadata.biased("attn_q")
    scaling = config.setdefault("rope_scaling", {"rope_type": "default"})
    if scaling["rope_type"] == "yarn":
        scaling["truncate"] = False
    return "gpt_oss"


def _ernie(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config, "moe_num_experts")
    metadata.only("expert_gating_func", _SOFTMAX)
    config |= {
        "moe_k": config.pop("num_experts_per_tok"),
        "moe_num_shared_experts": metadata.take("expert_shared_count", 0),
        "moe_layer_interval": metadata.take("interleave_moe_layer_step", 1),
        "moe_layer_start_index": metadata.take("leading_dense_block_count", 0),
    }
    metadata.keys.pop("expert_shared_feed_forward_length", None)
    return "ernie4_5_moe"


def _granitemoe(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config, "num_local_experts")
    config["intermediate_size"] = config.pop("moe_intermediate_size")
    config |= {
        "attention_multiplier": metadata.number("attention.scale"),
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }
    if width := metadata.take("expert_shared_feed_forward_length", 0):
        config |= {"shared_intermediate_size": width, "model_type": "granitemoeshared"}
    return "granitemoe"


def _phimoe(metadata: GgufMetadata, config: Json) -> str:
    _experts(metadata, config, "num_local_experts")
    config["intermediate_size"] = config.pop("moe_intermediate_size")
    config |= {
        "attention_bias": metadata.biased("attn_output"),
        "lm_head_bias": "output.bias" in metadata.names,
        "sliding_window": metadata.take("attention.sliding_window", 0) or None,
    }
    original = metadata.take("rope.scaling.original_context_length", None)
    factor = metadata.number("rope.scaling.attn_factor", 1.0)
    if LONG_FACTORS in metadata.names:
        short, long = (list(map(decimal, metadata.values(name))) for name in (SHORT_FACTORS, LONG_FACTORS))
        config["rope_scaling"] = longrope(short, long, original or config["max_position_embeddings"], factor)
    return "phimoe"


def _dbrx(metadata: GgufMetadata, config: Json) -> str:
    dbrx = {
        "vocab_size": config["vocab_size"],
        "d_model": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "max_seq_len": config["max_position_embeddings"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "attn_config": {
            "clip_qkv": metadata.number("attention.clamp_kqv", 0.0) or None,
            "kv_n_heads": config["num_key_value_heads"],
            "rope_theta": config["rope_theta"],
        },
        "ffn_config": {
            "ffn_hidden_size": config["intermediate_size"],
            "moe_num_experts": metadata.take("expert_count"),
            "moe_top_k": metadata.take("expert_used_count"),
        },
    }
    eps = config["rms_norm_eps"]
    check(eps == 1e-5, "attention.layer_norm_epsilon", eps, "the family dbrx has only 1e-05")
    config.clear()
    config |= dbrx
    return "dbrx"


def _grok(metadata: GgufMetadata, config: Json) -> str:
    """Grok-1: llama.cpp's own constants where a file, written before they had keys, says nothing."""
    _experts(metadata, config)
    config["intermediate_size"] = config.pop("moe_intermediate_size")
    # Written into every file and read for Grok-2; Grok-1's router caps nothing.
    metadata.keys.pop("router_logit_softcapping", None)
    config |= {
        "attn_output_multiplier": metadata.number("attention.output_scale", 0.08838834764831845),
        "max_attn_value": metadata.number("attn_logit_softcapping", 30.0),
        "embedding_multiplier_scale": metadata.number("embedding_scale", 78.38367176906169),
        "output_multiplier_scale": metadata.number("logit_scale", 0.5773502691896257),
        "model_type": "grok-1",
    }
    return "grok1"


def _llama4(metadata: GgufMetadata, config: Json) -> str:
    """Scout and Maverick; what their files leave out are constants of llama.cpp's graph."""
    _experts(metadata, config, "num_local_experts")
    metadata.only("expert_gating_func", _SIGMOID)
    metadata.only("leading_dense_block_count", 0)
    dense = config["intermediate_size"]
    config |= {
        "intermediate_size": config.pop("moe_intermediate_size"),
        "intermediate_size_mlp": dense,
        "interleave_moe_layer_step": metadata.take("interleave_moe_layer_step", 1),
        "attention_chunk_size": metadata.take("attention.sliding_window", 8192),
        "use_qk_norm": config["num_local_experts"] != 128,  # Maverick has none
        "model_type": "llama4_text",
    }
    return "llama4"


@dataclass(frozen=True)
class Architecture:
    """How the files of one architecture are read."""

    complete: Callable[[GgufMetadata, Json], str]
    """Completes a config.json and returns the family's name."""
    weights: WeightMap
    eps: str = "layer_norm_rms_epsilon"
    """The key of the norms' epsilon."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_llama, gguf_weights.PERMUTED),
    "qwen2moe": Architecture(_qwen2moe, gguf_weights.PLAIN),
    "qwen3moe": Architecture(_qwen3moe, gguf_weights.PLAIN),
    "olmoe": Architecture(_olmoe, gguf_weights.PLAIN),
    "deepseek": Architecture(_deepseek, gguf_weights.PERMUTED),
    "deepseek2": Architecture(_deepseek2, gguf_weights.LATENT),
    "glm4moe": Architecture(_glm4moe, gguf_weights.POST_NORM),
    "gpt-oss": Architecture(_gpt_oss, gguf_weights.POST_NORM),
    "ernie4_5-moe": Architecture(_ernie, gguf_weights.PLAIN),
    "dots1": Architecture(_dots1, gguf_weights.PLAIN),
    "granitemoe": Architecture(_granitemoe, gguf_weights.PERMUTED),
    "phimoe": Architecture(_phimoe, gguf_weights.MAYBE_FUSED),
    "dbrx": Architecture(_dbrx, gguf_weights.FUSED, "layer_norm_epsilon"),
    "grok": Architecture(_grok, gguf_weights.SANDWICH),
    "llama4": Architecture(_llama4, gguf_weights.PLAIN),
}
"""By llama.cpp's name."""
