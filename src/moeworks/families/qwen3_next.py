"""Qwen3-Next (Qwen team 2025): three layers of the gated delta rule to one of gated attention."""

from typing import Any

from moeworks.config.mixers import GatedDeltaConfig, GQAConfig
from moeworks.config.model import ModelConfig, NormConfig, SharedExpertsConfig
from moeworks.config.weight_rules import Place, Rule, Rules, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import (
    DECODER,
    gqa,
    mixer_draft,
    read_moe_layers,
    read_rope,
    write_moe_layers,
    write_rope,
)
from moeworks.families.weights import DENSE, KEYS_AND_VALUES, MOE, NORMS, TOP, gated

_KINDS = ("linear_attention", "full_attention")


def read_mixers(config: Json, draft: Json) -> None:
    """The full attention, and which layers have it."""
    full = mixer_draft(GQAConfig(output_gate=True))
    full["num_heads"] = take(config, "num_attention_heads")
    full["num_kv_heads"] = take(config, "num_key_value_heads", full["num_heads"])
    full["head_dim"] = take(config, "head_dim")
    full["qkv_bias"] = full["output_bias"] = bool(config.pop("attention_bias", False))
    read_rope(config, full, full["head_dim"], draft["max_seq_len"])
    interval = take(config, "full_attention_interval")
    default = [_KINDS[(i + 1) % interval == 0] for i in range(draft["num_layers"])]
    kinds = take(config, "layer_types", default)
    for kind in kinds:
        check(kind in _KINDS, "layer_types", kind, f"must be {' or '.join(_KINDS)}")
    draft["mixers"] = [full]
    draft["layer_mixers"] = [_KINDS.index(kind) for kind in kinds]


def write_mixers(model: ModelConfig, config: Json) -> None:
    """The reverse of read_mixers."""
    full = gqa(model, model.mixers[0]) if model.mixers else gqa(model)
    width = model.gqa_head_dim(full)
    config |= {"num_attention_heads": full.num_heads, "num_key_value_heads": full.num_kv_heads}
    config |= {"head_dim": width, "attention_bias": full.qkv_bias}
    write_rope(full.rope_theta, full.rope, config, width)
    config.setdefault("partial_rotary_factor", 1.0)
    config["layer_types"] = [_KINDS[choice] for choice in model.layer_mixers or ()]


def _qkvz(place: Place, qkv: Any, z: Any) -> list[Any]:
    """Rows in the published order: for each key head its query, key, values and gates."""
    mixer = place.mixer
    assert isinstance(mixer, GatedDeltaConfig)
    heads = mixer.num_key_heads
    q, k, v = qkv.split([mixer.key_width, mixer.key_width, mixer.value_width])
    return [t.unflatten(0, (heads, -1)) for t in (q, k, v, z)]


def _by_key_head(place: Place, *rows: Any) -> list[Any]:
    """Rows of the value heads, sorted by their key head."""
    mixer = place.mixer
    assert isinstance(mixer, GatedDeltaConfig)
    return [t.unflatten(0, (mixer.num_key_heads, -1)) for t in rows]


def _query_and_gate(place: Place, q: Any, gate: Any) -> list[Any]:
    """For each head its query and then its gate."""
    mixer = place.mixer
    assert isinstance(mixer, GQAConfig)
    return [t.unflatten(0, (mixer.num_heads, -1)) for t in (q, gate)]


DELTA: tuple[Rule, ...] = (
    Rule(
        "linear_attn.in_proj_qkvz.weight",
        ("attention.qkv_proj.weight", "attention.gate_proj.weight"),
        _qkvz,
        dim=1,
        flatten=(0, 1),
    ),
    Rule(
        "linear_attn.in_proj_ba.weight",
        ("attention.beta_proj.weight", "attention.decay_proj.weight"),
        _by_key_head,
        dim=1,
        flatten=(0, 1),
    ),
    Rule("linear_attn.conv1d.weight", "attention.conv", lambda place, t: t.unsqueeze(1)),
    Rule("linear_attn.dt_bias", "attention.decay_bias"),
    Rule("linear_attn.A_log", "attention.log_rate"),
    Rule("linear_attn.norm.weight", "attention.norm.weight"),
    Rule("linear_attn.out_proj.weight", "attention.o_proj.weight", only="gated_delta"),
)
FULL_ATTENTION: Rules = (
    *(
        Rule(
            f"self_attn.q_proj.{kind}",
            (f"attention.q_proj.{kind}", f"attention.gate_proj.{kind}"),
            _query_and_gate,
            dim=1,
            flatten=(0, 1),
        )
        for kind in ("weight", "bias")
    ),
    *KEYS_AND_VALUES,
    Rule("self_attn.o_proj.weight", "attention.o_proj.weight", only="gqa"),
    Rule("self_attn.o_proj.bias", "attention.o_proj.bias", only="gqa"),
)
_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *DELTA,
        *FULL_ATTENTION,
        *DENSE,
        *MOE,
        *gated("mlp.shared_expert", "mlp.shared"),
        Rule("mlp.shared_expert_gate.weight", "mlp.shared_token_gate.weight"),
    ),
    ignored=("mtp.*",),
)


def _read(config: Json, draft: Json) -> None:
    read_moe_layers(config, draft)
    read_mixers(config, draft)


def _write(model: ModelConfig, config: Json) -> None:
    write_moe_layers(model, config)
    write_mixers(model, config)


_DEFAULTS = dict(
    attention_bias=False, decoder_sparse_step=1, full_attention_interval=4, head_dim=256, hidden_act="silu",
    hidden_size=2048, intermediate_size=5632, linear_conv_kernel_dim=4, linear_key_head_dim=128,
    linear_num_key_heads=16, linear_num_value_heads=32, linear_value_head_dim=128,
    max_position_embeddings=32_768, moe_intermediate_size=512, norm_topk_prob=True, num_attention_heads=16,
    num_experts=512, num_experts_per_tok=10, num_hidden_layers=48, num_key_value_heads=2,
    partial_rotary_factor=0.25, rms_norm_eps=1e-06, rope_theta=10_000.0,
    shared_expert_intermediate_size=512, tie_word_embeddings=False, vocab_size=151_936,
)  # fmt: skip

FAMILY = Family(
    name="qwen3_next",
    model_types=("qwen3_next",),
    architecture="Qwen3NextForCausalLM",
    template=ModelConfig(
        attention=GatedDeltaConfig(),
        norm=NormConfig(zero_centred=True),
        shared=SharedExpertsConfig(num_shared_experts=1, shared_token_gate=True),
    ),
    defaults=_DEFAULTS,
    null=dict(partial_rotary_factor=1.0),
    fields=(
        *DECODER,
        Field("linear_num_key_heads", "attention.num_key_heads"),
        Field("linear_num_value_heads", "attention.num_value_heads"),
        Field("linear_key_head_dim", "attention.key_head_dim"),
        Field("linear_value_head_dim", "attention.value_head_dim"),
        Field("linear_conv_kernel_dim", "attention.conv_kernel"),
        Field("num_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("shared_expert_intermediate_size", "shared.d_shared"),
    ),
    fixed={"hidden_act": ("silu",)},
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "qwen3-next-80b-a3b": dict(
            full_attention_interval=4, head_dim=256, hidden_size=2048, intermediate_size=5120,
            linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_num_key_heads=16,
            linear_num_value_heads=32, linear_value_head_dim=128, max_position_embeddings=262_144,
            moe_intermediate_size=512, norm_topk_prob=True, num_attention_heads=16, num_experts=512,
            num_experts_per_tok=10, num_hidden_layers=48, num_key_value_heads=2, partial_rotary_factor=0.25,
            rms_norm_eps=1e-6, rope_theta=1e7, shared_expert_intermediate_size=512, vocab_size=151_936,
        ),
    },
)  # fmt: skip
