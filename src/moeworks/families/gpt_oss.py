"""gpt-oss (OpenAI 2025): windows in every other layer, attention sinks, biases, a clamped SwiGLU."""

from typing import Any

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ExpertsConfig, ModelConfig, RouterConfig
from moeworks.config.weight_rules import Place, Rule, WeightMap
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, gqa, read_gqa, read_windows, write_gqa, write_windows
from moeworks.families.weights import ATTENTION, NORMS, TOP, experts_transposed

_YARN = dict(
    rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
    original_max_position_embeddings=4096,
)  # fmt: skip


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    attention = draft["attention"]
    attention["qkv_bias"] = attention["output_bias"] = bool(take(config, "attention_bias"))
    default = [i % 2 == 0 for i in range(draft["num_layers"])]
    read_windows(config, draft, default=default, window=config.pop("sliding_window"))


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    config["attention_bias"] = gqa(model).qkv_bias
    config["sliding_window"] = write_windows(model, config)


_BOTH = dict(
    attention_bias=True, head_dim=64, hidden_size=2880, intermediate_size=2880,
    max_position_embeddings=131_072, num_attention_heads=64, num_experts_per_tok=4, num_key_value_heads=8,
    rms_norm_eps=1e-5,
    rope_scaling=_YARN, rope_theta=150_000, sliding_window=128, swiglu_limit=7.0, vocab_size=201_088,
)  # fmt: skip


def _interleaved(place: Place, t: Any) -> Any:
    """[E, 2F, D] with gate rows first as [E, D, F, 2]: gate and up of each unit beside each other."""
    return t.unflatten(1, (2, -1)).permute(0, 3, 2, 1)


_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        Rule("self_attn.sinks", "attention.sinks"),
        Rule("mlp.router.weight", "mlp.router.weight"),
        Rule("mlp.router.bias", "mlp.router.bias"),
        Rule("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", _interleaved, flatten=(2, 3)),
        Rule(
            "mlp.experts.gate_up_proj_bias",
            "mlp.experts.gate_up_bias",
            lambda place, t: t.unflatten(1, (2, -1)).transpose(1, 2),
            flatten=(1, 2),
        ),
        Rule("mlp.experts.down_proj", "mlp.experts.down_proj", experts_transposed),
        Rule("mlp.experts.down_proj_bias", "mlp.experts.down_bias"),
    ),
)

_DEFAULTS = dict(
    attention_bias=True, head_dim=64, hidden_act="silu", hidden_size=2880, intermediate_size=2880,
    max_position_embeddings=131_072, num_attention_heads=64, num_experts_per_tok=4, num_hidden_layers=36,
    num_key_value_heads=8, num_local_experts=128, rms_norm_eps=1e-05, rope_parameters=_YARN,
    rope_theta=150_000.0, sliding_window=128, swiglu_alpha=1.702, swiglu_limit=7.0,
    tie_word_embeddings=False, vocab_size=201_088,
)  # fmt: skip

FAMILY = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    architecture="GptOssForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False, sinks=True),
        router=RouterConfig(score_order="after_top_k", router_bias=True),
        experts=ExpertsConfig(activation="clamped_swiglu", expert_linear_bias=True),
    ),
    defaults=_DEFAULTS,
    null=dict(rope_parameters=_YARN, sliding_window=None),
    fields=(
        *DECODER,
        *GQA,
        Field("num_local_experts", "router.num_experts", also=("num_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",), "swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)},
    harmless=frozenset({"experts_per_token", "initial_context_length"}),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "gpt-oss-20b": dict(**_BOTH, num_hidden_layers=24, num_local_experts=32),
        "gpt-oss-120b": dict(**_BOTH, num_hidden_layers=36, num_local_experts=128),
    },
)
