"""GLM-4.5, 4.6 and Air (Zhipu 2025): grouped-query attention with DeepSeek-V3's router."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, GQA, GROUPED_ROUTER, read_gqa, write_gqa
from moeworks.families.weights import GLM


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    config.setdefault("partial_rotary_factor", 1.0)


_BOTH = dict(
    attention_bias=True, head_dim=128, max_position_embeddings=131_072, n_group=1, n_shared_experts=1,
    norm_topk_prob=True, num_attention_heads=96, num_experts_per_tok=8, num_key_value_heads=8,
    num_nextn_predict_layers=1, partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=1_000_000,
    topk_group=1, vocab_size=151_552,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=1, hidden_act="silu", hidden_size=4096,
    intermediate_size=10_944, max_position_embeddings=131_072, moe_intermediate_size=1408, n_group=1,
    n_routed_experts=128, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=96,
    num_experts_per_tok=8, num_hidden_layers=46, num_key_value_heads=8, num_nextn_predict_layers=1,
    partial_rotary_factor=0.5, rms_norm_eps=1e-05, rope_theta=10_000.0, routed_scaling_factor=1.0,
    tie_word_embeddings=False, topk_group=1, use_qk_norm=False, vocab_size=151_552,
)  # fmt: skip

FAMILY = Family(
    name="glm4_moe",
    model_types=("glm4_moe",),
    architecture="Glm4MoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False),
        router=RouterConfig(score="sigmoid", selection_bias=True),
    ),
    defaults=_DEFAULTS,
    null=dict(partial_rotary_factor=1.0),
    fields=(
        *DECODER,
        *GQA,
        *GROUPED_ROUTER,
        Field("attention_bias", "attention.qkv_bias"),
        Field("use_qk_norm", "attention.qk_norm"),
        Field("num_nextn_predict_layers", "num_mtp_layers", also=("num_mtp_layers",)),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=GLM,
    read=read_gqa,
    write=_write,
    presets={
        "glm-4.5": dict(
            **_BOTH, first_k_dense_replace=3, hidden_size=5120, intermediate_size=12_288,
            moe_intermediate_size=1536, n_routed_experts=160, num_hidden_layers=92, routed_scaling_factor=2.5,
            use_qk_norm=True,
        ),
        "glm-4.5-air": dict(
            **_BOTH, first_k_dense_replace=1, hidden_size=4096, intermediate_size=10_944,
            moe_intermediate_size=1408, n_routed_experts=128, num_hidden_layers=46, routed_scaling_factor=1.0,
            use_qk_norm=False,
        ),
    },
)  # fmt: skip
