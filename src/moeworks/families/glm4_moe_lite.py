"""GLM-4.7-Flash (Zhipu 2026), model_type "glm4_moe_lite": DeepSeek-V3's layers in a small model."""

from moeworks.families.base import Family
from moeworks.families.deepseek_v3 import FIELDS, HARMLESS_HERE, TEMPLATE
from moeworks.families.deepseek_v32 import read_named, write_named
from moeworks.families.weights import DEEPSEEK

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=1, hidden_act="silu", hidden_size=2048,
    intermediate_size=10_240, kv_lora_rank=512, max_position_embeddings=202_752, moe_intermediate_size=1536,
    n_group=1, n_routed_experts=64, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=20,
    num_experts_per_tok=4, num_hidden_layers=47, num_nextn_predict_layers=0, q_lora_rank=768,
    qk_nope_head_dim=192, qk_rope_head_dim=64, rms_norm_eps=1e-05, rope_interleave=True,
    rope_theta=10_000.0, routed_scaling_factor=1.8, tie_word_embeddings=False, topk_group=1, v_head_dim=256,
    vocab_size=154_880,
)  # fmt: skip

FAMILY = Family(
    name="glm4_moe_lite",
    model_types=("glm4_moe_lite",),
    architecture="Glm4MoeLiteForCausalLM",
    template=TEMPLATE,
    defaults=_DEFAULTS,
    null=dict(q_lora_rank=None),
    fields=FIELDS,
    fixed={"hidden_act": ("silu",)},
    harmless=HARMLESS_HERE,
    read=read_named,
    write=write_named,
    weights=DEEPSEEK,
    presets={
        "glm-4.7-flash": dict(
            first_k_dense_replace=1, hidden_size=2048, intermediate_size=10_240, kv_lora_rank=512,
            max_position_embeddings=202_752, moe_intermediate_size=1536, n_group=1, n_routed_experts=64,
            n_shared_experts=1, norm_topk_prob=True, num_attention_heads=20, num_experts_per_tok=4,
            num_hidden_layers=47, num_nextn_predict_layers=1, q_lora_rank=768, qk_nope_head_dim=192,
            qk_rope_head_dim=64, rms_norm_eps=1e-5, rope_theta=1_000_000, routed_scaling_factor=1.8,
            topk_group=1, v_head_dim=256, vocab_size=154_880,
        ),
    },
)  # fmt: skip
