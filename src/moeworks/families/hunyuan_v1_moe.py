"""Hunyuan-A13B (Tencent 2025): norms of queries and keys after the rotation, a raised rotary base."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import NORMS, TOP, experts, gated, projections

_BY_LAYER = ("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size")


def _unwrap(config: Json) -> Json:
    """Lists of one number per layer, all the same, as that number."""
    return {key: _same(key, value) if key in _BY_LAYER else value for key, value in config.items()}


def _same(key: str, value: object) -> object:
    if not isinstance(value, list) or not value:
        return value
    check(value.count(value[0]) == len(value), key, value, "must be the same in every layer")
    return value[0]


def _read(config: Json, draft: Json) -> None:
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    alpha = given.get("alpha")
    if alpha:
        take(dict(given), "factor")
        # Published as "dynamic" with an alpha: a base raised once and for all.
        unused = ("type", "alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        kept = {key: value for key, value in given.items() if key not in unused}
        config["rope_scaling"] = {**kept, "rope_type": "default"}
        config.pop("rope_parameters", None)
    read_biased_gqa(config, draft)
    if alpha:
        draft["attention"]["rope"] |= {"scaling": "ntk_alpha", "factor": float(alpha)}
    draft["shared"]["num_shared_experts"] = take(config, "num_shared_expert")
    draft["experts"]["d_expert"] = take(config, "moe_intermediate_size", draft["mlp"]["d_ff"])
    draft["shared"]["d_shared"] = draft["mlp"]["d_ff"]


def _write(model: ModelConfig, config: Json) -> None:
    write_biased_gqa(model, config)
    attention = model.attention
    assert isinstance(attention, GQAConfig)
    if attention.rope.scaling == "ntk_alpha":
        config["rope_scaling"] = {"type": "dynamic", "alpha": attention.rope.factor, "factor": 1.0}
    config["num_shared_expert"] = model.shared.num_shared_experts
    if model.experts.d_expert != model.mlp.d_ff:
        config["moe_intermediate_size"] = model.experts.d_expert


_DEFAULTS = dict(
    attention_bias=False, hidden_act="silu", hidden_size=4096, intermediate_size=11_008,
    max_position_embeddings=2048, moe_topk=1, num_attention_heads=32, num_experts=1, num_hidden_layers=32,
    num_shared_expert=1, rms_norm_eps=1e-05, rope_theta=10_000.0, tie_word_embeddings=False,
    vocab_size=290_943,
)  # fmt: skip

FAMILY = Family(
    name="hunyuan_v1_moe",
    model_types=("hunyuan_v1_moe",),
    architecture="HunYuanMoEV1ForCausalLM",
    template=ModelConfig(attention=GQAConfig(qk_norm_after_rope=True)),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("moe_topk", "router.top_k", also=("num_experts_per_tok",)),
        Field("intermediate_size", "mlp.d_ff"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "use_qk_norm": (True,),
        "use_cla": (False,),
        "use_mixed_mlp_moe": (True,),
    },
    harmless=frozenset({
        "eod_token_id", "org_vocab_size", "capacity_factor", "moe_drop_tokens", "mlp_bias", "norm_type",
        "moe_random_routing_dropped_token", "moe_layer_num_skipped", "num_media_embeds",
    }),
    unwrap=_unwrap,
    read=_read,
    write=_write,
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *projections("qkvo"),
            Rule("self_attn.query_layernorm.weight", "attention.q_norm.weight"),
            Rule("self_attn.key_layernorm.weight", "attention.k_norm.weight"),
            Rule("mlp.gate.wg.weight", "mlp.router.weight"),
            experts("mlp.experts"),
            *gated("mlp.shared_mlp", "mlp.shared"),
        ),
    ),
    presets={
        "hunyuan-a13b": dict(
            head_dim=128, hidden_size=4096, intermediate_size=3072, max_position_embeddings=32_768,
            moe_topk=8, num_attention_heads=32, num_experts=64, num_hidden_layers=32, num_key_value_heads=8,
            rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=True, vocab_size=128_167,
            rope_scaling=dict(type="dynamic", alpha=1000.0, factor=1.0),
        ),
    },
)  # fmt: skip
