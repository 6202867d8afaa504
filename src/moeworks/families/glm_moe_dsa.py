"""GLM-5 (Zhipu 2026), model_type "glm_moe_dsa": DeepSeek-V3.2's layers; the indexer turns neighbours too.

Layers that share the indexer of an earlier one (GLM-5.2's index_topk_freq) are refused.
"""

from dataclasses import replace

from moeworks.config.mixers import IndexerConfig, MLAConfig
from moeworks.errors import check
from moeworks.families import deepseek_v32
from moeworks.families.base import Family, Json
from moeworks.families.deepseek_v3 import TEMPLATE

_V32 = deepseek_v32.FAMILY


def _read(config: Json, draft: Json) -> None:
    kinds = config.pop("indexer_types", None) or []
    check(set(kinds) <= {"full"}, "indexer_types", kinds, "must all be 'full'")
    _V32.read(config, draft)


FAMILY = Family(
    name="glm_moe_dsa",
    model_types=("glm_moe_dsa",),
    architecture="GlmMoeDsaForCausalLM",
    template=replace(
        TEMPLATE,
        attention=MLAConfig(q_lora_rank=1536, indexer=IndexerConfig(rope_style="interleaved")),
    ),
    fields=_V32.fields,
    fixed={**_V32.fixed, "index_topk_freq": (1,), "indexer_rope_interleave": (True,)},
    harmless=_V32.harmless | {"index_skip_topk_offset"},
    read=_read,
    write=_V32.write,
    weights=_V32.weights,
    presets={
        "glm-5": dict(
            first_k_dense_replace=3, hidden_size=6144, index_head_dim=128, index_n_heads=32, index_topk=2048,
            intermediate_size=12_288, kv_lora_rank=512, max_position_embeddings=202_752,
            moe_intermediate_size=2048, n_group=1, n_routed_experts=256, n_shared_experts=1,
            norm_topk_prob=True, num_attention_heads=64, num_experts_per_tok=8, num_hidden_layers=78,
            num_nextn_predict_layers=1, q_lora_rank=2048, qk_nope_head_dim=192, qk_rope_head_dim=64,
            rms_norm_eps=1e-5, rope_theta=1_000_000, routed_scaling_factor=2.5, topk_group=1, v_head_dim=256,
            vocab_size=154_880,
        ),
    },
)  # fmt: skip
