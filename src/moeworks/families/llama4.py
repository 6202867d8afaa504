"""Llama 4 Scout and Maverick (Meta 2025), the text model: chunked attention with rotary positions in most
layers, full attention without positions in the others; the routing weight multiplies an expert's input."""

from itertools import cycle, islice

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig, SharedExpertsConfig
from moeworks.config.rope import RopeConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.llama import LLAMA31_ROPE
from moeworks.families.parts import DECODER, GQA, gqa, read_gqa, write_gqa
from moeworks.families.weights import ATTENTION, NORMS, TOP, experts_transposed, gated

_CHUNKED = "chunked_attention"


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    layers, attention = draft["num_layers"], draft["attention"]
    attention["qkv_bias"] = attention["output_bias"] = bool(config.pop("attention_bias", False))
    attention["qk_norm"] = bool(take(config, "use_qk_norm"))
    interval = take(config, "no_rope_layer_interval")
    # The published name is the wrong way round: 1 means that the layer has rotary positions.
    turned = config.pop("no_rope_layers", None) or [int((i + 1) % interval != 0) for i in range(layers)]
    attention["chunk"] = take(config, "attention_chunk_size", None)
    names = take(config, "layer_types", [_CHUNKED if flag else "full_attention" for flag in turned])
    chunked = [name == _CHUNKED and attention["chunk"] is not None for name in names]
    expected = [bool(flag) and attention["chunk"] is not None for flag in turned]
    check(chunked == expected, "layer_types", names, "must be chunked exactly where no_rope_layers is 1")
    still = {**attention, "rope": {**attention["rope"], "enabled": False}, "chunk": None, "qk_norm": False}
    floor, scale = take(config, "floor_scale"), take(config, "attn_scale")
    if take(config, "attn_temperature_tuning"):
        still |= {"temperature_floor": floor, "temperature_scale": scale}
    draft["mixers"], draft["layer_mixers"] = [still], [int(not flag) for flag in turned]
    step = take(config, "interleave_moe_layer_step")
    listed = config.pop("moe_layers", None)
    if listed is None or listed == list(range(step - 1, layers, step)):
        draft["pattern"]["every"] = step
    else:
        draft["pattern"]["explicit"] = sorted(listed)


def _write(model: ModelConfig, config: Json) -> None:
    turned, still = gqa(model), gqa(model, model.mixers[0]) if model.mixers else gqa(model)
    write_gqa(model, config)
    config |= {"attention_bias": turned.qkv_bias, "use_qk_norm": turned.qk_norm}
    config["attention_chunk_size"] = turned.chunk
    config["no_rope_layers"] = [int(choice == 0) for choice in model.layer_mixers or ()]
    config["layer_types"] = [
        _CHUNKED if choice == 0 and turned.chunk else "full_attention" for choice in model.layer_mixers or ()
    ]
    config["attn_temperature_tuning"] = still.temperature_floor is not None
    config |= {"floor_scale": still.temperature_floor or 8192, "attn_scale": still.temperature_scale}
    config |= {"interleave_moe_layer_step": model.pattern.every, "moe_layers": list(model.moe_layers)}


_BOTH = dict(
    attention_chunk_size=8192, head_dim=128, hidden_size=5120, intermediate_size=8192,
    intermediate_size_mlp=16_384, no_rope_layers=list(islice(cycle((1, 1, 1, 0)), 48)),
    num_attention_heads=40, num_experts_per_tok=1, num_hidden_layers=48, num_key_value_heads=8,
    rms_norm_eps=1e-5, rope_theta=500_000.0, vocab_size=202_048,
)  # fmt: skip

_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        *gated("feed_forward", "mlp"),
        *gated("feed_forward.shared_expert", "mlp.shared"),
        Rule("feed_forward.router.weight", "mlp.router.weight"),
        Rule("feed_forward.experts.gate_up_proj", "mlp.experts.gate_up_proj", experts_transposed),
        Rule("feed_forward.experts.down_proj", "mlp.experts.down_proj", experts_transposed),
    ),
    ignored=("vision_model.*", "multi_modal_projector.*"),
    renamed=(("language_model.", ""),),
)

_DEFAULTS = dict(
    attention_bias=False, attention_chunk_size=8192, attn_scale=0.1, attn_temperature_tuning=True,
    floor_scale=8192, head_dim=128, hidden_act="silu", hidden_size=5120, interleave_moe_layer_step=1,
    intermediate_size=8192, intermediate_size_mlp=16_384, max_position_embeddings=131_072,
    no_rope_layer_interval=4, num_attention_heads=40, num_experts_per_tok=1, num_hidden_layers=48,
    num_key_value_heads=8, num_local_experts=16, rms_norm_eps=1e-05, rope_theta=500_000.0,
    tie_word_embeddings=False, use_qk_norm=True, vocab_size=202_048,
)  # fmt: skip

FAMILY = Family(
    name="llama4",
    model_types=("llama4_text", "llama4"),
    architecture="Llama4ForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(
            qk_norm_kind="l2", qk_norm_after_rope=True, rope=RopeConfig(style="interleaved")
        ),
        router=RouterConfig(
            score="sigmoid", score_order="after_top_k", renormalize=False, weights_on="input"
        ),
        shared=SharedExpertsConfig(num_shared_experts=1),
    ),
    defaults=_DEFAULTS,
    null=dict(attention_chunk_size=None),
    fields=(
        *DECODER,
        *GQA,
        Field("num_local_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
        Field("intermediate_size_mlp", "mlp.d_ff"),
    ),
    fixed={"hidden_act": ("silu",)},
    harmless=frozenset({"router_jitter_noise", "for_llm_compressor"}),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    unwrap=lambda config: config.get("text_config", config),
    presets={
        "llama-4-scout": dict(
            **_BOTH, interleave_moe_layer_step=1, max_position_embeddings=10_485_760, num_local_experts=16,
            rope_scaling=LLAMA31_ROPE | dict(factor=16.0, high_freq_factor=1.0), use_qk_norm=True,
        ),
        "llama-4-maverick": dict(
            **_BOTH, interleave_moe_layer_step=2, max_position_embeddings=1_048_576, num_local_experts=128,
            rope_scaling=None, use_qk_norm=False,
        ),
    },
)  # fmt: skip
