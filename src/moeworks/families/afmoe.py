"""AFMoE (Arcee 2025, Trinity): gated attention, norms on both sides, no positions in the full layers."""

from math import sqrt

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, gqa, read_gqa, read_windows, write_gqa, write_windows
from moeworks.families.weights import ATTENTION, DENSE, SHARED, TOP, experts


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    every, layers = take(config, "global_attn_every_n_layers"), draft["num_layers"]
    default = [(i + 1) % every != 0 for i in range(layers)]
    read_windows(config, draft, default=default, window=take(config, "sliding_window", None), turn_full=False)
    if config.pop("mup_enabled", False):
        draft["embedding_scale"] = sqrt(draft["d_model"])


def _write(model: ModelConfig, config: Json) -> None:
    windowed = next((m for m in model.mixer_of_layers if gqa(model, m).window), model.attention)
    write_gqa(model, config, gqa(model, windowed))
    config["sliding_window"] = write_windows(model, config)
    scale = model.embedding_scale
    check(scale in (1.0, sqrt(model.d_model)), "embedding_scale", scale, "must be 1 or the root of d_model")
    config["mup_enabled"] = scale != 1.0


_DEFAULTS = dict(
    attention_bias=False, global_attn_every_n_layers=4, head_dim=128, hidden_act="silu", hidden_size=2048,
    intermediate_size=6144, max_position_embeddings=16_384, moe_intermediate_size=1408, mup_enabled=False,
    num_attention_heads=16, num_dense_layers=1, num_experts=64, num_experts_per_tok=6, num_hidden_layers=32,
    num_shared_experts=2, rms_norm_eps=1e-05, rope_theta=10_000.0, route_scale=1.0, sliding_window=1024,
    tie_word_embeddings=False, vocab_size=200_192,
)  # fmt: skip

FAMILY = Family(
    name="afmoe",
    model_types=("afmoe",),
    architecture="AfmoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(output_gate=True),
        norm=NormConfig(placement="sandwich"),
        router=RouterConfig(score="sigmoid", selection_bias=True),
    ),
    defaults=_DEFAULTS,
    null=dict(sliding_window=None),
    fields=(
        *DECODER,
        *GQA,
        Field("num_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("route_scale", "router.routing_scale"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("num_shared_experts", "shared.num_shared_experts"),
        Field("num_dense_layers", "pattern.first_dense"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "score_func": ("sigmoid",),
        "route_norm": (True,),
        "n_group": (1,),
        "topk_group": (1,),
        "num_expert_groups": (1,),
        "num_limited_groups": (1,),
    },
    harmless=frozenset({"load_balance_coeff", "use_grouped_mm"}),
    read=_read,
    write=_write,
    weights=WeightMap(
        top=TOP,
        layer=(
            Rule("input_layernorm.weight", "attention_norm.weight"),
            Rule("post_attention_layernorm.weight", "attention_post_norm.weight"),
            Rule("pre_mlp_layernorm.weight", "mlp_norm.weight"),
            Rule("post_mlp_layernorm.weight", "mlp_post_norm.weight"),
            *ATTENTION,
            Rule("self_attn.gate_proj.weight", "attention.gate_proj.weight"),
            *DENSE,
            Rule("mlp.router.gate.weight", "mlp.router.weight"),
            Rule("mlp.expert_bias", "mlp.router.expert_bias"),
            experts("mlp.experts"),
            *SHARED,
        ),
    ),
    presets={
        "trinity-mini": dict(
            global_attn_every_n_layers=4, head_dim=128, hidden_size=2048, intermediate_size=6144,
            max_position_embeddings=131_072, moe_intermediate_size=1024, mup_enabled=True,
            num_attention_heads=32, num_dense_layers=2, num_experts=128, num_experts_per_tok=8,
            num_hidden_layers=32, num_key_value_heads=4, num_shared_experts=1, rms_norm_eps=1e-5,
            rope_theta=10_000, route_scale=2.826, sliding_window=2048, vocab_size=200_192,
        ),
    },
)  # fmt: skip
