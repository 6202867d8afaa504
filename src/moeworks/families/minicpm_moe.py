"""MiniCPM-MoE (Hu et al. 2024): Mixtral's layers with scaled embeddings, residuals and logits.

transformers has no class for it: built from the published config and description, and compared with its
GraniteMoE. Not verified: tensor names against a release itself.
"""

from math import sqrt

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import ATTENTION, NORMS, TOP, W123, experts


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    draft["residual_scale"] = take(config, "scale_depth") / sqrt(draft["num_layers"])
    draft["logit_scale"] = take(config, "dim_model_base") / draft["d_model"]


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    config["scale_depth"] = model.residual_scale * sqrt(model.num_layers)
    config["dim_model_base"] = model.logit_scale * model.d_model


_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        Rule("mlp.gate.weight", "mlp.router.weight"),
        experts("mlp.experts", W123),
    ),
)

_DEFAULTS = dict(
    num_experts_per_tok=2, rms_norm_eps=1e-06, rope_theta=10_000.0, tie_word_embeddings=True,
)  # fmt: skip

FAMILY = Family(
    name="minicpm_moe",
    model_types=("minicpm",),
    architecture="MiniCPMForCausalLM",
    template=ModelConfig(attention=GQAConfig(qk_norm=False)),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("scale_emb", "embedding_scale"),
        Field("num_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "minicpm-moe-8x2b": dict(
            dim_model_base=256, hidden_size=2304, intermediate_size=5760, max_position_embeddings=4096,
            num_attention_heads=36, num_experts=8, num_experts_per_tok=2, num_hidden_layers=40,
            num_key_value_heads=36, rms_norm_eps=1e-5, scale_depth=1.4, scale_emb=12,
            tie_word_embeddings=True, vocab_size=122_753,
        ),
    },
)  # fmt: skip
