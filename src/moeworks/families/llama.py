"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), and the many dense models of that shape."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import LayerPatternConfig, ModelConfig
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import LLAMA

_8B = dict(
    hidden_size=4096, intermediate_size=14_336, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500_000.0, vocab_size=128_256,
)  # fmt: skip
LLAMA31_ROPE = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, hidden_act="silu", hidden_size=4096, intermediate_size=11_008,
    max_position_embeddings=2048, mlp_bias=False, num_attention_heads=32, num_hidden_layers=32,
    rms_norm_eps=1e-06, rope_theta=10_000.0, tie_word_embeddings=False, vocab_size=32_000,
)  # fmt: skip

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    architecture="LlamaForCausalLM",
    template=ModelConfig(pattern=LayerPatternConfig(explicit=()), attention=GQAConfig(qk_norm=False)),
    defaults=_DEFAULTS,
    fields=(*DECODER, *GQA, Field("intermediate_size", "mlp.d_ff"), Field("mlp_bias", "mlp.mlp_bias")),
    fixed={"hidden_act": ("silu",)},
    weights=LLAMA,
    read=read_biased_gqa,
    write=write_biased_gqa,
    presets={
        "llama-2-7b": dict(
            hidden_size=4096, intermediate_size=11_008, max_position_embeddings=4096, num_attention_heads=32,
            num_hidden_layers=32, num_key_value_heads=32, rms_norm_eps=1e-5, vocab_size=32_000,
        ),
        "llama-3-8b": dict(**_8B, max_position_embeddings=8192),
        "llama-3.1-8b": dict(**_8B, max_position_embeddings=131_072, rope_scaling=LLAMA31_ROPE),
        "smollm2-135m": dict(
            hidden_size=576, intermediate_size=1536, max_position_embeddings=8192, num_attention_heads=9,
            num_hidden_layers=30, num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=100_000,
            tie_word_embeddings=True, vocab_size=49_152,
        ),
    },
)  # fmt: skip
