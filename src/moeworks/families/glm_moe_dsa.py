"""GLM-5 (Zhipu 2026), model_type "glm_moe_dsa": DeepSeek-V3.2's layers; the indexer turns neighbours too.

Some layers may take the keys that the indexer of an earlier one chose (GLM-5.2). The multi-token prediction
layer has an indexer of its own even then; transformers leaves it out, so it was compared with nothing.
"""

from dataclasses import replace

from moeworks.config.mixers import IndexerConfig, MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.errors import check
from moeworks.families import deepseek_v32
from moeworks.families.base import Family, Json, take
from moeworks.families.deepseek_v3 import TEMPLATE
from moeworks.families.parts import mla, put_mixers

_V32 = deepseek_v32.FAMILY


_LETTERS = {"F": "full", "S": "shared"}


def _read(config: Json, draft: Json) -> None:
    kinds = _indexer_types(config, draft["num_layers"])
    _V32.read(config, draft)
    own = draft["attention"]
    shared = {**own, "indexer": {**own["indexer"], "shared": True}}
    put_mixers(draft, own, shared, [kind == "shared" for kind in kinds])


def _indexer_types(config: Json, layers: int) -> list[str]:
    """Which layers choose keys themselves: by name, by a pattern of letters, or all but every n-th."""
    named, pattern = config.pop("indexer_types", None), config.pop("index_topk_pattern", None)
    every = max(take(config, "index_topk_freq", 1), 1)
    offset = take(config, "index_skip_topk_offset", 2)
    if named is None and pattern is not None:
        named = [_LETTERS.get(letter, letter) for letter in pattern]
    if named is None:
        named = ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(layers)]
    check(set(named) <= {"full", "shared"}, "indexer_types", named, "must be 'full' or 'shared'")
    check(len(named) == layers, "indexer_types", named, f"must name each of the {layers} layers")
    return list(named)


def _write(model: ModelConfig, config: Json) -> None:
    _V32.write(model, config)
    indexers = [mla(model, mixer).indexer for mixer in model.mixer_of_layers]
    config["indexer_types"] = ["shared" if index and index.shared else "full" for index in indexers]


_SHAPE = dict(
    first_k_dense_replace=3, hidden_size=6144, index_head_dim=128, index_n_heads=32, index_topk=2048,
    intermediate_size=12_288, kv_lora_rank=512, max_position_embeddings=202_752, moe_intermediate_size=2048,
    n_group=1, n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=64,
    num_experts_per_tok=8, num_hidden_layers=78, num_nextn_predict_layers=1, q_lora_rank=2048,
    qk_nope_head_dim=192, qk_rope_head_dim=64, rms_norm_eps=1e-5, rope_theta=1_000_000,
    routed_scaling_factor=2.5, topk_group=1, v_head_dim=256, vocab_size=154_880,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=3, hidden_act="silu", hidden_size=6144, index_head_dim=128,
    index_n_heads=32, index_topk=2048, intermediate_size=12_288, kv_lora_rank=512,
    max_position_embeddings=202_752, mlp_bias=False, moe_intermediate_size=2048, n_group=1,
    n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=64,
    num_experts_per_tok=8, num_hidden_layers=78, num_nextn_predict_layers=0, q_lora_rank=2048,
    qk_nope_head_dim=192, qk_rope_head_dim=64, rms_norm_eps=1e-05, rope_theta=10_000.0,
    routed_scaling_factor=2.5, tie_word_embeddings=False, topk_group=1, v_head_dim=256, vocab_size=154_880,
)  # fmt: skip

FAMILY = Family(
    name="glm_moe_dsa",
    model_types=("glm_moe_dsa",),
    architecture="GlmMoeDsaForCausalLM",
    template=replace(
        TEMPLATE,
        attention=MLAConfig(q_lora_rank=1536, indexer=IndexerConfig(rope_style="interleaved")),
    ),
    defaults=_DEFAULTS,
    fields=_V32.fields,
    fixed={**_V32.fixed, "indexer_rope_interleave": (True,)},
    harmless=_V32.harmless | {"index_share_for_mtp_iteration", "moe_router_dtype"},
    read=_read,
    write=_write,
    weights=_V32.weights,
    presets={
        "glm-5": _SHAPE,
        "glm-5.2": _SHAPE
        | dict(
            index_skip_topk_offset=3, index_topk_freq=4, max_position_embeddings=1_048_576,
            rope_theta=8_000_000,
        ),
    },
)  # fmt: skip
