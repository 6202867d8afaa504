"""DeepSeekMoE 16B (Dai et al. 2024), model_type "deepseek": fine-grained and shared experts, plain attention.

transformers has no class for it: built from the published config and description, and compared with its
classes for the same parts. Not verified: tensor names against a release itself (they are DeepSeek-V2's).
"""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import DEEPSEEK_V1

_DEFAULTS = dict(
    first_k_dense_replace=0, n_shared_experts=0, norm_topk_prob=False, rms_norm_eps=1e-06,
    rope_theta=10_000.0, tie_word_embeddings=False,
)  # fmt: skip

FAMILY = Family(
    name="deepseek_v1",
    model_types=("deepseek",),
    architecture="DeepseekForCausalLM",
    template=ModelConfig(attention=GQAConfig(qk_norm=False)),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("n_routed_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("n_shared_experts", "shared.num_shared_experts"),
        Field("first_k_dense_replace", "pattern.first_dense"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        "attention_bias": (False,),
    },
    weights=DEEPSEEK_V1,
    read=read_gqa,
    write=write_gqa,
    presets={
        "deepseek-moe-16b": dict(
            first_k_dense_replace=1, hidden_size=2048, intermediate_size=10_944, max_position_embeddings=4096,
            moe_intermediate_size=1408, n_routed_experts=64, n_shared_experts=2, norm_topk_prob=False,
            num_attention_heads=16, num_experts_per_tok=6, num_hidden_layers=28, num_key_value_heads=16,
            rms_norm_eps=1e-6, rope_theta=10_000, vocab_size=102_400,
        ),
    },
)  # fmt: skip
