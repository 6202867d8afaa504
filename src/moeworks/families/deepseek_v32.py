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


_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=3, hidden_act="silu", hidden_size=7168, index_head_dim=128,
    index_n_heads=64, index_topk=2048, intermediate_size=18_432, kv_lora_rank=512,
    max_position_embeddings=163_840, mlp_bias=False, moe_intermediate_size=2048, n_group=8,
    n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=128,
    num_experts_per_tok=8, num_hidden_layers=61, num_nextn_predict_layers=0, q_lora_rank=1536,
    qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_theta=10_000.0,
    routed_scaling_factor=2.5, tie_word_embeddings=False, topk_group=4, v_head_dim=128, vocab_size=129_280,
)  # fmt: skip

FAMILY = Family(
    name="deepseek_v32",
    model_types=("deepseek_v32",),
    architecture="DeepseekV32ForCausalLM",
    template=replace(TEMPLATE, attention=MLAConfig(q_lora_rank=1536, indexer=IndexerConfig())),
    defaults=_DEFAULTS,
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
