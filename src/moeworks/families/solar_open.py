"""Solar Open (Upstage 2026): plain grouped-query attention with DeepSeek-V3's router, every layer a MoE."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, GROUPED_ROUTER, read_gqa, write_gqa
from moeworks.families.weights import GLM

_ROUTER = tuple(f for f in GROUPED_ROUTER if f.key not in ("first_k_dense_replace", "intermediate_size"))

_DEFAULTS = dict(
    attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=4096,
    max_position_embeddings=131_072, moe_intermediate_size=1280, n_group=1, n_routed_experts=128,
    n_shared_experts=1, norm_topk_prob=True, num_attention_heads=64, num_experts_per_tok=8,
    num_hidden_layers=48, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=1_000_000.0,
    routed_scaling_factor=1.0, tie_word_embeddings=False, topk_group=1, vocab_size=196_608,
)  # fmt: skip

FAMILY = Family(
    name="solar_open",
    model_types=("solar_open",),
    architecture="SolarOpenForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False), router=RouterConfig(score="sigmoid", selection_bias=True)
    ),
    defaults=_DEFAULTS,
    fields=(*DECODER, *GQA, *_ROUTER, Field("attention_bias", "attention.qkv_bias")),
    fixed={"hidden_act": ("silu",), "first_k_dense_replace": (0,)},
    harmless=frozenset({"intermediate_size"}),
    read=read_gqa,
    write=write_gqa,
    weights=GLM,
    presets={
        "solar-open-100b": dict(
            head_dim=128, hidden_size=4096, max_position_embeddings=131_072, moe_intermediate_size=1280,
            n_group=1, n_routed_experts=128, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=64,
            num_experts_per_tok=8, num_hidden_layers=48, num_key_value_heads=8, rms_norm_eps=1e-5,
            rope_theta=1_000_000, routed_scaling_factor=1.0, topk_group=1, vocab_size=196_608,
        ),
    },
)  # fmt: skip
