"""Families as llama.cpp writes them: from a GGUF file's metadata to a config.json, and its tensors' names.

Names and conventions are those of llama.cpp's converter: the architecture "llama" (dense models, and Mixtral)
has the rows of queries and keys permuted, because llama.cpp turns neighbours; the others do not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moeworks.config.mixers import GQAConfig
from moeworks.config.weight_rules import Place, Rule, Rules, WeightMap
from moeworks.errors import ConfigError, nearest
from moeworks.families.base import Json, take
from moeworks.families.weights import half

_TOP: Rules = (
    Rule("token_embd.weight", "embed.weight"),
    Rule("output_norm.weight", "final_norm.weight"),
    Rule("output.weight", "lm_head.weight"),
)


def _permuted(place: Place, t: Any) -> Any:
    """Rows of heads, halves and pairs as rows of heads, pairs and halves."""
    mixer = place.mixer
    assert isinstance(mixer, GQAConfig)
    width = place.model.gqa_head_dim(mixer)
    return t.unflatten(0, (-1, 2, width // 2)).transpose(1, 2)


def _fused(number: int) -> Callable[..., Any]:
    """Gate or up of all experts."""
    return lambda place, t: t.unflatten(1, (2, -1))[:, number]


def _attention(*, permuted: bool) -> Rules:
    view, flatten = (_permuted, (0, 2)) if permuted else (None, None)
    return (
        *(
            Rule(f"attn_{n}.{kind}", f"attention.{n}_proj.{kind}", view, flatten=flatten)
            for n in "qk"
            for kind in ("weight", "bias")
        ),
        *(Rule(f"attn_v.{kind}", f"attention.v_proj.{kind}") for kind in ("weight", "bias")),
        *(Rule(f"attn_output.{kind}", f"attention.o_proj.{kind}") for kind in ("weight", "bias")),
        Rule("attn_q_norm.weight", "attention.q_norm.weight"),
        Rule("attn_k_norm.weight", "attention.k_norm.weight"),
    )


_REST: Rules = (
    Rule("attn_norm.weight", "attention_norm.weight"),
    Rule("ffn_norm.weight", "mlp_norm.weight"),
    Rule("ffn_gate.weight", "mlp.gate_up_proj.weight", half(0)),
    Rule("ffn_up.weight", "mlp.gate_up_proj.weight", half(1)),
    Rule("ffn_down.weight", "mlp.down_proj.weight"),
    Rule("ffn_gate_inp.weight", "mlp.router.weight"),
    Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", _fused(0)),
    Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj", _fused(1)),
    Rule("ffn_down_exps.weight", "mlp.experts.down_proj"),
    Rule("ffn_gate_shexp.weight", "mlp.shared.gate_up_proj.weight", half(0)),
    Rule("ffn_up_shexp.weight", "mlp.shared.gate_up_proj.weight", half(1)),
    Rule("ffn_down_shexp.weight", "mlp.shared.down_proj.weight"),
    Rule("ffn_gate_inp_shexp.weight", "mlp.shared_token_gate.weight", lambda place, t: t[0]),
)


def _map(*, permuted: bool) -> WeightMap:
    return WeightMap(layer_prefix="blk.{i}.", top=_TOP, layer=(*_attention(permuted=permuted), *_REST))


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds."""

    family: str
    """Name of its family."""
    config: Json
    """Its config.json."""
    weights: WeightMap
    """Its tensors' names."""


def _llama(given: Json, config: Json) -> str:
    if (experts := given.pop("expert_count", 0)) == 0:
        return "llama"
    config |= {"num_local_experts": experts, "num_experts_per_tok": take(given, "expert_used_count")}
    return "mixtral"


def _experts(given: Json, config: Json) -> None:
    config |= {
        "num_experts": take(given, "expert_count"),
        "num_experts_per_tok": take(given, "expert_used_count"),
        "moe_intermediate_size": take(given, "expert_feed_forward_length", config["intermediate_size"]),
    }


def _qwen2moe(given: Json, config: Json) -> str:
    _experts(given, config)
    config["shared_expert_intermediate_size"] = take(
        given, "expert_shared_feed_forward_length", config["intermediate_size"]
    )
    return "qwen2_moe"


def _qwen3moe(given: Json, config: Json) -> str:
    _experts(given, config)
    config["norm_topk_prob"] = True
    return "qwen3_moe"


def _olmoe(given: Json, config: Json) -> str:
    config |= {
        "num_experts": take(given, "expert_count"),
        "num_experts_per_tok": take(given, "expert_used_count"),
    }
    return "olmoe"


_ARCHITECTURES: Mapping[str, tuple[Callable[[Json, Json], str], bool]] = {
    "llama": (_llama, True),
    "qwen2moe": (_qwen2moe, False),
    "qwen3moe": (_qwen3moe, False),
    "olmoe": (_olmoe, False),
}
"""By llama.cpp's name: what completes the config and names the family, and whether rows are permuted."""

_COMMON = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "context_length":
    "max_position_embeddings", "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
_HARMLESS = frozenset({
    "vocab_size", "rope.dimension_count", "attention.value_length", "expert_group_count",
    "expert_group_used_count", "expert_weights_norm", "expert_gating_func", "interleave_moe_layer_step",
})  # fmt: skip


def _decimal(value: float) -> float:
    """The short number that was rounded to float32, as in 1e-5 for 9.999999747378752e-06."""
    return float(f"{value:.6g}")


def gguf_model(metadata: Mapping[str, Any], names: set[str], vocab_size: int) -> GgufModel:
    """What a file with this metadata, these tensors and this vocabulary is. Raises ConfigError."""
    kind = str(metadata.get("general.architecture"))
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            f"general.architecture = {kind!r}: not one that is read; {nearest(kind, _ARCHITECTURES)}"
        )
    complete, permuted = _ARCHITECTURES[kind]
    prefix = f"{kind}."
    given = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    config: Json = {theirs: take(given, key) for key, theirs in _COMMON.items()}
    config |= {
        "vocab_size": vocab_size,
        "num_key_value_heads": take(given, "attention.head_count_kv", config["num_attention_heads"]),
        "intermediate_size": take(given, "feed_forward_length", 1),
        "rope_theta": _decimal(take(given, "rope.freq_base", 10_000.0)),
        "rms_norm_eps": _decimal(config["rms_norm_eps"]),
        "tie_word_embeddings": "output.weight" not in names,
    }
    if (width := given.pop("attention.key_length", None)) is not None:
        config["head_dim"] = width
    family = complete(given, config)
    config["model_type"] = family
    rest = {key: value for key, value in given.items() if key not in _HARMLESS}
    if rest:
        key = min(rest)
        raise ConfigError(
            f"{prefix}{key} = {rest[key]!r}: unknown, and it may change what the model computes"
        )
    return GgufModel(family, config, _map(permuted=permuted))
