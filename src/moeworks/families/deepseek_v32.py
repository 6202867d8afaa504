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
from moeworks.families.weights import DEEPSEEK


def _read(config: Json, draft: Json) -> None:
    read_v3(config, draft)
    kinds = config.pop("mlp_layer_types", None)
    if kinds is not None:
        sparse = [i for i, kind in enumerate(kinds) if kind == "sparse"]
        check(set(kinds) <= {"dense", "sparse"}, "mlp_layer_types", kinds, "must be 'dense' or 'sparse'")
        first = draft["pattern"]["first_dense"]
        if sparse != list(range(first, draft["num_layers"])):
            draft["pattern"] |= {"first_dense": 0, "explicit": sparse}
    layers = config.pop("layer_types", None) or []
    check(set(layers) <= {"indexed_attention"}, "layer_types", layers, "must all be 'indexed_attention'")


def _write(model: ModelConfig, config: Json) -> None:
    write_v3(model, config)
    if model.pattern.explicit is not None:
        moe = model.moe_layers
        config["mlp_layer_types"] = ["sparse" if i in moe else "dense" for i in range(model.num_layers)]


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
    write=_write,
    presets={"deepseek-v3.2": SHAPE | dict(index_n_heads=64, index_head_dim=128, index_topk=2048)},
)
