"""Families as llama.cpp writes them: from a GGUF file's metadata to a config.json, and its tensors' names.

Keys and conventions are those of llama.cpp's converters; where a file says nothing, the constants are those
that its graphs assume. What a file says and nothing here reads is an error: it may change the computation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeworks.config.weight_rules import WeightMap
from moeworks.errors import ConfigError, nearest
from moeworks.families.base import Json, take
from moeworks.families.gguf_architectures import ARCHITECTURES, GgufMetadata
from moeworks.families.gguf_rope import decimal, scaling_of_divisors, take_rope_scaling
from moeworks.families.gguf_weights import ROPE_FREQS
from moeworks.gguf_file import GgufFile


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds."""

    family: str
    """The name of the family whose config.json describes it."""
    config: Json
    """The config.json that describes it."""
    weights: WeightMap
    """The names of its tensors."""


_EMBED = "token_embd.weight"
_COMMON = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "context_length":
    "max_position_embeddings", "attention.head_count": "num_attention_heads",
}  # fmt: skip
_HARMLESS = frozenset({
    "vocab_size", "attention.value_length", "expert_group_count", "expert_group_used_count",
    "expert_weights_norm", "expert_gating_func", "interleave_moe_layer_step",
})  # fmt: skip


def gguf_model(file: GgufFile) -> GgufModel:
    """The model in a file. Raises ConfigError."""
    vocab_size = file.shape(_EMBED)[0] if _EMBED in file.names else 1
    return described_model(file.metadata, set(file.names), vocab_size, lambda n: file.values(n).tolist())


def described_model(
    metadata: Mapping[str, Any],
    names: set[str],
    vocab_size: int,
    values: Callable[[str], Sequence[float]] = lambda name: (),
) -> GgufModel:
    """The model with this metadata, these tensors and this vocabulary; `values` reads a small tensor.

    Raises ConfigError.
    """
    kind = str(metadata.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"general.architecture = {kind!r}: not one that is read; {nearest(kind, ARCHITECTURES)}"
            f" (read: {', '.join(ARCHITECTURES)})"
        )
    architecture, prefix = ARCHITECTURES[kind], f"{kind}."
    keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    config: Json = {theirs: take(keys, key) for key, theirs in _COMMON.items()}
    config |= {
        "vocab_size": vocab_size,
        "num_key_value_heads": take(keys, "attention.head_count_kv", config["num_attention_heads"]),
        "intermediate_size": take(keys, "feed_forward_length", 1),
        "rope_theta": decimal(take(keys, "rope.freq_base", 10_000.0)),
        "rms_norm_eps": decimal(take(keys, f"attention.{architecture.eps}")),
        "tie_word_embeddings": "output.weight" not in names,
    }
    if (width := keys.pop("attention.key_length", None)) is not None:
        config["head_dim"] = width
    if (scaling := take_rope_scaling(keys)) is not None:
        config["rope_scaling"] = scaling
    if ROPE_FREQS in names:
        found = scaling_of_divisors(
            values(ROPE_FREQS), config["rope_theta"], config["max_position_embeddings"]
        )
        if found is not None and scaling is not None:
            raise ConfigError(f"{ROPE_FREQS}: beside rope.scaling.type = {scaling['rope_type']!r}")
        config |= {} if found is None else {"rope_scaling": found}
    given = GgufMetadata(keys, names, values)
    family = architecture.complete(given, config)
    _partial_rotation(keys, config)
    config.setdefault("model_type", family)
    rest = {key: value for key, value in keys.items() if key not in _HARMLESS}
    if rest:
        key = min(rest)
        raise ConfigError(
            f"{prefix}{key} = {rest[key]!r}: unknown, and it may change what the model computes"
        )
    return GgufModel(family, config, architecture.weights)


def _partial_rotation(keys: Json, config: Json) -> None:
    """How many values of a head turn."""
    turned = keys.pop("rope.dimension_count", None)
    if turned is None or "hidden_size" not in config:
        return
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["partial_rotary_factor"] = turned / width
