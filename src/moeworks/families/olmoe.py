"""OLMoE (Muennighoff et al. 2024): queries and keys normalised over all heads at once, optional clipping."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import QWEN_MOE

_DEFAULTS = dict(
    attention_bias=False, clip_qkv=None, hidden_act="silu", hidden_size=2048, intermediate_size=2048,
    max_position_embeddings=4096, norm_topk_prob=False, num_attention_heads=16, num_experts=64,
    num_experts_per_tok=8, num_hidden_layers=16, rms_norm_eps=1e-05, rope_theta=10_000.0,
    tie_word_embeddings=False, vocab_size=50_304,
)  # fmt: skip

FAMILY = Family(
    name="olmoe",
    model_types=("olmoe",),
    architecture="OlmoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm_kind="flat"), router=RouterConfig(renormalize=False)
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("clip_qkv", "attention.qkv_clip"),
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=QWEN_MOE,
    read=read_biased_gqa,
    write=write_biased_gqa,
    presets={
        "olmoe-1b-7b": dict(
            clip_qkv=None, hidden_size=2048, intermediate_size=1024, max_position_embeddings=4096,
            norm_topk_prob=False, num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
            num_hidden_layers=16, num_key_value_heads=16, rms_norm_eps=1e-5, rope_theta=10_000.0,
            vocab_size=50_304,
        ),
    },
)  # fmt: skip
