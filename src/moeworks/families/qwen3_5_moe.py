"""Qwen3.5-MoE (Qwen team 2026), the text model: Qwen3-Next's layers, all MoE, rows in plain order."""

from moeworks.config.weight_rules import Rule, Rules, WeightMap
from moeworks.families.base import Family, Json
from moeworks.families.qwen3_next import DELTA, FULL_ATTENTION, read_mixers, write_mixers
from moeworks.families.qwen3_next import FAMILY as NEXT
from moeworks.families.weights import MOE, NORMS, TOP, gated

_LINEAR = {
    "in_proj_qkv": "qkv_proj",
    "in_proj_z": "gate_proj",
    "in_proj_b": "beta_proj",
    "in_proj_a": "decay_proj",
}
_DELTA: Rules = (
    *(
        Rule(f"linear_attn.{theirs}.weight", f"attention.{ours}.weight", only="gated_delta")
        for theirs, ours in _LINEAR.items()
    ),
    *(rule for rule in DELTA if not rule.theirs.startswith("linear_attn.in_proj")),
)


def _read(config: Json, draft: Json) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(name), dict):
            # Three position ids per token, which are the same for text.
            drop = ("mrope_section", "mrope_interleaved")
            config[name] = {key: value for key, value in config[name].items() if key not in drop}
    read_mixers(config, draft)


_DEFAULTS = dict(
    attention_bias=False, full_attention_interval=4, head_dim=256, hidden_act="silu", hidden_size=2048,
    linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32,
    linear_value_head_dim=128, max_position_embeddings=32_768, moe_intermediate_size=512,
    num_attention_heads=16, num_experts=256, num_experts_per_tok=8, num_hidden_layers=40,
    num_key_value_heads=2, partial_rotary_factor=0.25, rms_norm_eps=1e-06, rope_theta=10_000.0,
    shared_expert_intermediate_size=512, tie_word_embeddings=False, vocab_size=248_320,
)  # fmt: skip

FAMILY = Family(
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    architecture="Qwen3_5MoeForCausalLM",
    template=NEXT.template,
    defaults=_DEFAULTS,
    null=dict(partial_rotary_factor=1.0),
    fields=tuple(f for f in NEXT.fields if f.key not in ("norm_topk_prob", "intermediate_size")),
    fixed={"hidden_act": ("silu",), "attn_output_gate": (True,), "norm_topk_prob": (True,)},
    harmless=frozenset({"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype"}),
    read=_read,
    write=write_mixers,
    unwrap=lambda config: config.get("text_config", config),
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *_DELTA,
            *FULL_ATTENTION,
            *MOE,
            *gated("mlp.shared_expert", "mlp.shared"),
            Rule("mlp.shared_expert_gate.weight", "mlp.shared_token_gate.weight"),
        ),
        ignored=("mtp.*", "model.visual.*"),
        renamed=(("model.language_model.", "model."),),
    ),
    presets={
        "qwen3.5-35b-a3b": dict(
            full_attention_interval=4, head_dim=256, hidden_size=2048, linear_conv_kernel_dim=4,
            linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32,
            linear_value_head_dim=128, max_position_embeddings=262_144, moe_intermediate_size=512,
            num_attention_heads=16, num_experts=256, num_experts_per_tok=8, num_hidden_layers=40,
            num_key_value_heads=2, partial_rotary_factor=0.25, rms_norm_eps=1e-6, rope_theta=1e7,
            shared_expert_intermediate_size=512, vocab_size=248_320,
        ),
    },
)  # fmt: skip
