"""Grok-1 (xAI 2024): norms before and after each block, capped scores, scaled embeddings and logits.

transformers has no class for it: built from the published model.py and the config of its PyTorch port, and
compared with a forward pass by hand. Not verified: tensor names against the port's files themselves.
"""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ExpertsConfig, ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Either, Rule, WeightMap
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import TOP, experts


def _norm(theirs: str, ours: str) -> Either:
    """Ports call a norm's weight by one of two names."""
    return Either(tuple((Rule(f"{theirs}.{name}", f"{ours}.weight"),) for name in ("scale", "weight")))


_WEIGHTS = WeightMap(
    top=(TOP[0], _norm("model.norm", "final_norm"), TOP[2]),
    layer=(
        _norm("pre_attn_norm", "attention_norm"),
        _norm("post_attn_norm", "attention_post_norm"),
        _norm("pre_moe_norm", "mlp_norm"),
        _norm("post_moe_norm", "mlp_post_norm"),
        *(Rule(f"attn.{n}_proj.weight", f"attention.{n}_proj.weight") for n in "qkvo"),
        Rule("moe_block.gate.weight", "mlp.router.weight"),
        experts("moe_block.experts", ("linear", "linear_v", "linear_1")),
    ),
)

_DEFAULTS = dict(
    rms_norm_eps=1e-06, rope_theta=10_000.0, tie_word_embeddings=True,
)  # fmt: skip

FAMILY = Family(
    name="grok1",
    model_types=("grok-1",),
    architecture="Grok1ModelForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False),
        norm=NormConfig(placement="sandwich"),
        router=RouterConfig(renormalize=False),
        experts=ExpertsConfig(activation="geglu_tanh"),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("attn_output_multiplier", "attention.softmax_scale"),
        Field("max_attn_value", "attention.score_softcap"),
        Field("embedding_multiplier_scale", "embedding_scale"),
        Field("output_multiplier_scale", "logit_scale"),
        Field("num_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    weights=_WEIGHTS,
    read=read_gqa,
    write=write_gqa,
    presets={
        "grok-1": dict(
            attn_output_multiplier=0.08838834764831845, embedding_multiplier_scale=78.38367176906169,
            hidden_size=6144, intermediate_size=32_768, max_attn_value=30.0, max_position_embeddings=8192,
            num_attention_heads=48, num_experts=8, num_experts_per_tok=2, num_hidden_layers=64,
            num_key_value_heads=8, output_multiplier_scale=0.5773502691896257, rms_norm_eps=1e-5,
            tie_word_embeddings=True, vocab_size=131_072,
        ),
    },
)  # fmt: skip
