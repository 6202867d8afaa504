"""Phi-3.5-MoE (Microsoft 2024): LayerNorms with biases, sparsemixer routing, LongRoPE.

Beyond original_max_position_embeddings this follows the documented rule, long_factor and long_mscale, where
transformers 5 applies short_factor with long_mscale. Training takes the deterministic choice of inference
instead of SparseMixer's sampling.
"""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, GQA, gqa, read_gqa, write_gqa
from moeworks.families.weights import ATTENTION, MIXTRAL_MOE, NORMS, TOP


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    attention = draft["attention"]
    attention["qkv_bias"] = attention["output_bias"] = bool(config.pop("attention_bias", False))


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    config["attention_bias"] = gqa(model).qkv_bias


_WEIGHTS = WeightMap(
    top=(
        *TOP,
        Rule("model.norm.bias", "final_norm.bias"),
        Rule("lm_head.bias", "lm_head.bias"),
    ),
    layer=(
        *NORMS,
        Rule("input_layernorm.bias", "attention_norm.bias"),
        Rule("post_attention_layernorm.bias", "mlp_norm.bias"),
        *ATTENTION,
        *MIXTRAL_MOE,
    ),
)

FAMILY = Family(
    name="phimoe",
    model_types=("phimoe",),
    architecture="PhimoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False),
        norm=NormConfig(kind="layer", bias=True),
        router=RouterConfig(score="sparsemixer", renormalize=False),
    ),
    fields=(
        *DECODER,
        *GQA,
        Field("lm_head_bias", "lm_head_bias", False),
        Field("sliding_window", "attention.window", None),
        Field("num_local_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k", 2),
        Field("router_jitter_noise", "router.sparsemixer_eps", 0.01),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    harmless=frozenset({"input_jitter_noise", "hidden_dropout"}),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        # Without the 64 factors of its LongRoPE, which stand in the checkpoint's own config.json.
        "phi-3.5-moe": dict(
            attention_bias=True, hidden_size=4096, intermediate_size=6400, lm_head_bias=True,
            max_position_embeddings=131_072, num_attention_heads=32, num_experts_per_tok=2,
            num_hidden_layers=32, num_key_value_heads=8, num_local_experts=16, rms_norm_eps=1e-5,
            rope_theta=10_000.0, router_jitter_noise=0.01, sliding_window=131_072, vocab_size=32_064,
        ),
    },
)  # fmt: skip
