"""FlexOlmo (Shi et al. 2025): OLMoE's router and query norms, and norms after each block instead of
before."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import ATTENTION, MOE, TOP

_DEFAULTS = dict(
    attention_bias=False, hidden_act="silu", hidden_size=4096, intermediate_size=11_008,
    max_position_embeddings=4096, norm_topk_prob=False, num_attention_heads=32, num_experts=7,
    num_experts_per_tok=5, num_hidden_layers=32, rms_norm_eps=1e-06, rope_theta=500_000.0,
    tie_word_embeddings=False, vocab_size=100_352,
)  # fmt: skip

FAMILY = Family(
    name="flex_olmo",
    model_types=("flex_olmo",),
    architecture="FlexOlmoForCausalLM",
    template=ModelConfig(
        norm=NormConfig(placement="post"),
        attention=GQAConfig(qk_norm_kind="flat"),
        router=RouterConfig(renormalize=False),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    read=read_biased_gqa,
    write=write_biased_gqa,
    weights=WeightMap(
        top=TOP,
        layer=(
            Rule("post_attention_layernorm.weight", "attention_norm.weight"),
            Rule("post_feedforward_layernorm.weight", "mlp_norm.weight"),
            *ATTENTION,
            *MOE,
        ),
    ),
    presets={
        "flexolmo-7x7b": dict(
            hidden_size=4096, intermediate_size=11_008, max_position_embeddings=4096, num_attention_heads=32,
            num_experts=7, num_experts_per_tok=5, num_hidden_layers=32, num_key_value_heads=32,
            rms_norm_eps=1e-6, rope_theta=500_000, vocab_size=100_352,
        ),
    },
)  # fmt: skip
