"""DeepSeek-V3.2 (DeepSeek-AI 2025): V3 with sparse attention over the keys that an indexer chooses."""

from dataclasses import replace

from moeworks.config.mixers import IndexerConfig, MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json
from moeworks.families.deepseek_v3 import (
    FIELDS,
    FIXED,
    HARMLESS_HERE,
    SHAPE,
    TEMPLATE,
    read_v3,
    write_v3,
)
from moeworks.families.parts import read_sparse_layers, write_sparse_layers
from moeworks.families.weights import DEEPSEEK


def read_named(config: Json, draft: Json) -> None:
    """DeepSeek-V3's fields, and which layers are dense by name."""
    read_v3(config, draft)
    read_sparse_layers(config, draft)


def _read(config: Json, draft: Json) -> None:
    read_named(config, draft)
    layers = config.pop("layer_types", None) or []
    check(set(layers) <= {"indexed_attention"}, "layer_types", layers, "must all be 'indexed_attention'")


def write_named(model: ModelConfig, config: Json) -> None:
    """The reverse of read_named."""
    write_v3(model, config)
    if model.pattern.explicit is not None:
        write_sparse_layers(model, config)


FAMILY = Family(
    name="deepseek_v32",
    model_types=("deepseek_v32",),
    architecture="DeepseekV32ForCausalLM",
    template=replace(TEMPLATE, attention=MLAConfig(q_lora_rank=1536, indexer=IndexerConfig())),
    fields=(
        *FIELDS,
        Field("index_n_heads", "attention.indexer.num_heads"),
        Field("index_head_dim", "attention.indexer.head_dim"),
        Field("index_topk", "attention.indexer.top_k"),
    ),
    fixed=FIXED | {"mlp_bias": (False,)},
    harmless=HARMLESS_HERE,
    weights=DEEPSEEK,
    read=_read,
    write=write_named,
    presets={"deepseek-v3.2": SHAPE | dict(index_n_heads=64, index_head_dim=128, index_topk=2048)},
)
