"""Kimi Linear (Moonshot AI 2025): Kimi delta attention; in some layers latent attention without positions.

A save by transformers puts dense blocks under block_sparse_moe, where no release has them; both are read, and
so is the layout that it has in memory.
"""

from dataclasses import replace
from typing import Any

from moeworks.config.mixers import GatedDeltaConfig, MLAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.rope import RopeConfig
from moeworks.config.weight_rules import Either, Place, Rule, Rules, View, WeightMap
from moeworks.errors import ConfigError, check
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import (
    DECODER,
    MLA,
    mixer_draft,
    put_mixers,
    read_sparse_layers,
    write_sparse_layers,
)
from moeworks.families.weights import MIXTRAL_MOE, NORMS, TOP, gated, plain
from moeworks.families.weights import MLA as MLA_WEIGHTS

_KINDS = ("full_attention", "linear_attention")


def _read(config: Json, draft: Json) -> None:
    linear = dict(config.pop("linear_attn_config", {}))
    width = linear.pop("head_dim", config.pop("linear_head_dim"))
    heads = linear.pop("num_heads", config.pop("linear_num_heads"))
    kernel = linear.pop("short_conv_kernel_size", config.pop("linear_conv_kernel_dim"))
    delta = GatedDeltaConfig(
        num_key_heads=heads, num_value_heads=heads, key_head_dim=width, value_head_dim=width,
        conv_kernel=kernel, decay="channel", latent_rank=width, gate_activation="sigmoid",
    )  # fmt: skip
    kinds = _layer_types(config, linear, draft["num_layers"])
    check(not linear, "linear_attn_config", linear, "not fields of the family kimi_linear")
    put_mixers(draft, draft["attention"], mixer_draft(delta), [kind == _KINDS[1] for kind in kinds])
    read_sparse_layers(config, draft)


def _layer_types(config: Json, linear: Json, layers: int) -> list[str]:
    """By name; or by two lists of layers counted from 1; or every fourth but the first."""
    named, full, delta = (
        config.pop("layer_types", None), linear.pop("full_attn_layers", None), linear.pop("kda_layers", None)
    )  # fmt: skip
    if named is None and full is not None and delta is not None:
        rule = f"must name each of the {layers} layers once"
        check(
            sorted([*full, *delta]) == list(range(1, layers + 1)), "linear_attn_config", [full, delta], rule
        )
        named = [_KINDS[i + 1 in delta] for i in range(layers)]
    if named is None:
        named = [_KINDS[not (i and i % 4 == 0)] for i in range(layers)]
    check(set(named) <= set(_KINDS), "layer_types", named, f"must be {' or '.join(_KINDS)}")
    check(len(named) == layers, "layer_types", named, f"must name each of the {layers} layers")
    return list(named)


def _write(model: ModelConfig, config: Json) -> None:
    deltas = [mixer for mixer in model.mixer_of_layers if isinstance(mixer, GatedDeltaConfig)]
    if not deltas:
        raise ConfigError("model.mixers: the family kimi_linear has a gated delta rule in some layers")
    recurrent = [isinstance(mixer, GatedDeltaConfig) for mixer in model.mixer_of_layers]
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["layer_types"] = [_KINDS[flag] for flag in recurrent]
    config["linear_attn_config"] = {
        "head_dim": deltas[0].key_head_dim,
        "num_heads": deltas[0].num_key_heads,
        "short_conv_kernel_size": deltas[0].conv_kernel,
        "full_attn_layers": [i for i, flag in enumerate(recurrent, 1) if not flag],
        "kda_layers": [i for i, flag in enumerate(recurrent, 1) if flag],
    }
    write_sparse_layers(model, config)


def _rows(number: int, *, conv: bool = False) -> View:
    """The rows of queries, keys or values, which are equally many; of a convolution with a dimension more."""

    def view(place: Place, t: Any) -> Any:
        part = t.unflatten(0, (3, -1))[number]
        return part.unsqueeze(1) if conv else part

    return view


_ONLY = "gated_delta"
_RENAMED = {
    "f_a_proj.weight": "decay_latent_proj.weight",
    "f_b_proj.weight": "decay_proj.weight",
    "g_a_proj.weight": "gate_latent_proj.weight",
    "g_b_proj.weight": "gate_proj.weight",
    "b_proj.weight": "beta_proj.weight",
    "dt_bias": "decay_bias",
    "o_norm.weight": "norm.weight",
    "o_proj.weight": "o_proj.weight",
}
_DELTA: Rules = (
    *(
        Rule(f"self_attn.{name}_proj.weight", "attention.qkv_proj.weight", _rows(i), only=_ONLY)
        for i, name in enumerate("qkv")
    ),
    Either(
        (
            tuple(
                Rule(f"self_attn.{name}_conv1d.weight", "attention.conv", _rows(i, conv=True), only=_ONLY)
                for i, name in enumerate("qkv")
            ),
            (Rule("self_attn.conv1d.weight", "attention.conv", lambda place, t: t.unsqueeze(1), only=_ONLY),),
        )
    ),
    *(Rule(f"self_attn.{theirs}", f"attention.{ours}", only=_ONLY) for theirs, ours in _RENAMED.items()),
    Rule("self_attn.A_log", "attention.log_rate", lambda place, t: t.view(1, 1, -1, 1), only=_ONLY),
)
_SPARSE = ("gate", "experts", "shared_experts")
_BLOCK = ("gate_proj", "up_proj", "down_proj")
"""Parts of the two kinds of blocks, of which releases call only the sparse ones block_sparse_moe."""
_LATENT: Rules = tuple(replace(rule, only="mla") for rule in plain(MLA_WEIGHTS))

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=1, hidden_act="silu", hidden_size=2304,
    intermediate_size=9216, kv_lora_rank=512, linear_conv_kernel_dim=4, linear_head_dim=128,
    linear_num_heads=32, model_max_length=1_048_576, moe_intermediate_size=1024, moe_renormalize=True,
    num_attention_heads=32, num_expert_group=1, num_experts=256, num_experts_per_token=8,
    num_hidden_layers=27, num_shared_experts=1, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
    rms_norm_eps=1e-05, routed_scaling_factor=2.446, tie_word_embeddings=False, topk_group=1,
    v_head_dim=128, vocab_size=163_840,
)  # fmt: skip

FAMILY = Family(
    name="kimi_linear",
    model_types=("kimi_linear",),
    architecture="KimiLinearForCausalLM",
    template=ModelConfig(
        attention=MLAConfig(rope=RopeConfig(enabled=False)),
        router=RouterConfig(score="sigmoid", selection_bias=True),
    ),
    defaults=_DEFAULTS,
    fields=(
        *(entry for entry in DECODER if entry.path != "max_seq_len"),
        Field("model_max_length", "max_seq_len", also=("max_position_embeddings",)),
        *MLA,
        Field("num_experts", "router.num_experts", also=("num_local_experts",)),
        Field("num_experts_per_token", "router.top_k", also=("num_experts_per_tok",)),
        Field("num_expert_group", "router.num_groups", also=("n_group",)),
        Field("topk_group", "router.top_k_groups"),
        Field("moe_renormalize", "router.renormalize", also=("norm_topk_prob",)),
        Field("routed_scaling_factor", "router.routing_scale"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("num_shared_experts", "shared.num_shared_experts", also=("n_shared_experts",)),
        Field("first_k_dense_replace", "pattern.first_dense"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "mla_use_nope": (True,),
        "moe_router_activation_func": ("sigmoid",),
        "moe_layer_freq": (1,),
        "num_nextn_predict_layers": (0,),
    },
    harmless=frozenset({
        "num_key_value_heads", "head_dim", "qk_head_dim", "rope_theta", "rope_scaling", "use_grouped_topk",
    }),
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *_LATENT,
            *_DELTA,
            *gated("mlp", "mlp"),
            *MIXTRAL_MOE,
            Rule("block_sparse_moe.gate.e_score_correction_bias", "mlp.router.expert_bias"),
            *gated("block_sparse_moe.shared_experts", "mlp.shared"),
        ),
        renamed=(
            *((f".mlp.{name}.", f".block_sparse_moe.{name}.") for name in _SPARSE),
            *((f".block_sparse_moe.{name}.", f".mlp.{name}.") for name in _BLOCK),
            (".self_attn.forget_gate.", ".self_attn."),
        ),
    ),
    read=_read,
    write=_write,
    presets={
        "kimi-linear-48b-a3b": dict(
            first_k_dense_replace=1, hidden_size=2304, intermediate_size=9216, kv_lora_rank=512,
            linear_attn_config=dict(
                full_attn_layers=[4, 8, 12, 16, 20, 24, 27], head_dim=128, num_heads=32,
                kda_layers=[i for i in range(1, 27) if i % 4], short_conv_kernel_size=4,
            ),
            model_max_length=1_048_576, moe_intermediate_size=1024, moe_renormalize=True,
            num_attention_heads=32, num_expert_group=1, num_experts=256, num_experts_per_token=8,
            num_hidden_layers=27, num_shared_experts=1, q_lora_rank=None, qk_nope_head_dim=128,
            qk_rope_head_dim=64, rms_norm_eps=1e-5, routed_scaling_factor=2.446, topk_group=1,
            v_head_dim=128, vocab_size=163_840,
        ),
    },
)  # fmt: skip
