"""Mixtral (Jiang et al. 2024): every layer a MoE, weights renormalised over the chosen experts."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import MIXTRAL

_DEFAULTS = dict(
    hidden_act="silu", hidden_size=4096, intermediate_size=14_336, max_position_embeddings=131_072,
    num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_key_value_heads=8,
    num_local_experts=8, rms_norm_eps=1e-05, rope_theta=1_000_000.0, router_jitter_noise=0.0,
    sliding_window=None, tie_word_embeddings=False, vocab_size=32_000,
)  # fmt: skip

FAMILY = Family(
    name="mixtral",
    model_types=("mixtral",),
    architecture="MixtralForCausalLM",
    template=ModelConfig(attention=GQAConfig(qk_norm=False)),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("sliding_window", "attention.window"),
        Field("num_local_experts", "router.num_experts", also=("num_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("router_jitter_noise", "router.input_jitter"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=MIXTRAL,
    read=read_gqa,
    write=write_gqa,
    presets={
        "mixtral-8x7b": dict(
            hidden_size=4096, intermediate_size=14_336, max_position_embeddings=32_768,
            num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_key_value_heads=8,
            num_local_experts=8,
            rms_norm_eps=1e-5, rope_theta=1e6, vocab_size=32_000,
        ),
        "mixtral-8x22b": dict(
            hidden_size=6144, intermediate_size=16_384, max_position_embeddings=65_536,
            num_attention_heads=48, num_experts_per_tok=2, num_hidden_layers=56, num_key_value_heads=8,
            num_local_experts=8,
            rms_norm_eps=1e-5, rope_theta=1e6, vocab_size=32_000,
        ),
    },
)  # fmt: skip
