"""Granite MoE and PowerMoE (Shen et al. 2024; IBM 2024), also with a shared expert: four multipliers."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import ATTENTION, NORMS, TOP


def _read(config: Json, draft: Json) -> None:
    read_biased_gqa(config, draft)
    draft["logit_scale"] = 1.0 / take(config, "logits_scaling", 1.0)
    width = config.pop("shared_intermediate_size", None) or 0
    if width:
        draft["shared"] |= {"num_shared_experts": 1, "d_shared": width}


def _write(model: ModelConfig, config: Json) -> None:
    write_biased_gqa(model, config)
    config["logits_scaling"] = 1.0 / model.logit_scale
    if model.shared.num_shared_experts:
        config |= {"architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared"}
        config["shared_intermediate_size"] = model.moe.shared_width


_BOTH = dict(
    attention_multiplier=0.015625, embedding_multiplier=12.0, intermediate_size=512, logits_scaling=6.0,
    max_position_embeddings=4096, num_experts_per_tok=8, num_key_value_heads=8, residual_multiplier=0.22,
    rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=True, vocab_size=49_155,
)  # fmt: skip

_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        Rule("block_sparse_moe.router.layer.weight", "mlp.router.weight"),
        Rule("block_sparse_moe.input_linear.weight", "mlp.experts.gate_up_proj"),
        Rule("block_sparse_moe.output_linear.weight", "mlp.experts.down_proj"),
        Rule("shared_mlp.input_linear.weight", "mlp.shared.gate_up_proj.weight"),
        Rule("shared_mlp.output_linear.weight", "mlp.shared.down_proj.weight"),
    ),
    renamed=(
        (".block_sparse_moe.experts.gate_up_proj", ".block_sparse_moe.input_linear.weight"),
        (".block_sparse_moe.experts.down_proj", ".block_sparse_moe.output_linear.weight"),
        (".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
    ),
)

_DEFAULTS = dict(
    attention_bias=False, attention_multiplier=1.0, embedding_multiplier=1.0, hidden_act="silu",
    hidden_size=4096, intermediate_size=11_008, logits_scaling=1.0, max_position_embeddings=2048,
    num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_local_experts=8,
    residual_multiplier=1.0, rms_norm_eps=1e-06, rope_theta=10_000.0, shared_intermediate_size=0,
    tie_word_embeddings=False, vocab_size=32_000,
)  # fmt: skip

FAMILY = Family(
    name="granitemoe",
    model_types=("granitemoe", "granitemoeshared"),
    architecture="GraniteMoeForCausalLM",
    template=ModelConfig(attention=GQAConfig(qk_norm=False), router=RouterConfig(score_order="after_top_k")),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("attention_multiplier", "attention.softmax_scale"),
        Field("embedding_multiplier", "embedding_scale"),
        Field("residual_multiplier", "residual_scale"),
        Field("num_local_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "granite-3.0-1b-a400m": dict(
            **_BOTH, hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, num_local_experts=32
        ),
        "granite-3.0-3b-a800m": dict(
            **_BOTH, hidden_size=1536, num_attention_heads=24, num_hidden_layers=32, num_local_experts=40
        ),
    },
)
