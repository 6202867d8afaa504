"""Mistral Small 4 (Mistral AI 2026), model_type "mistral4": latent attention, queries grow with the position.

The text model alone; the release wraps it with a vision tower, which is not read.
"""

from moeworks.config.mixers import MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.config.weight_rules import WeightMap
from moeworks.families.base import Family, Json, take
from moeworks.families.deepseek_v3 import HARMLESS_HERE, read_v3, write_v3
from moeworks.families.parts import DECODER, GROUPED_ROUTER, MLA, mla
from moeworks.families.weights import DENSE, NORMS, SHARED, TOP, Rule, experts_fused
from moeworks.families.weights import MLA as MLA_WEIGHTS

_YARN = dict(
    rope_type="yarn", rope_theta=10_000.0, factor=128.0, original_max_position_embeddings=8192,
    beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
)  # fmt: skip


def _read(config: Json, draft: Json) -> None:
    attention = draft["attention"]
    given = take(config, "rope_scaling", None) or take(config, "rope_parameters")
    rope = {key: value for key, value in dict(given).items() if key != "max_position_embeddings"}
    # Of the whole head; the rotation here is of the part that turns, and of all of it.
    rope.pop("partial_rotary_factor", None)
    beta, origin = rope.pop("llama_4_scaling_beta", None), rope.get("original_max_position_embeddings")
    if origin is None and "yarn" in (rope.get("rope_type"), rope.get("type")):
        origin = draft["max_seq_len"]
    if beta:
        attention |= {"temperature_floor": take({"original": origin}, "original"), "temperature_scale": beta}
    config["rope_parameters"] = rope
    config.pop("rope_scaling", None)
    read_v3(config, draft)


def _write(model: ModelConfig, config: Json) -> None:
    attention = mla(model)
    write_v3(model, config)
    floor, origin = attention.temperature_floor, attention.rope.original_max_seq_len
    config["rope_scaling"] = {"rope_type": "default"} | (config["rope_scaling"] or {}) | {
        "rope_theta": attention.rope_theta,
        "partial_rotary_factor": attention.rope_head_dim / attention.qk_head_dim,
        "original_max_position_embeddings": floor or origin or model.max_seq_len,
        "llama_4_scaling_beta": 0.0 if floor is None else attention.temperature_scale,
    }  # fmt: skip


_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=0, hidden_act="silu", hidden_size=4096,
    intermediate_size=12_288, kv_lora_rank=256, max_position_embeddings=1_048_576,
    moe_intermediate_size=2048, n_group=1, n_routed_experts=128, n_shared_experts=1, norm_topk_prob=True,
    num_attention_heads=32, num_experts_per_tok=4, num_hidden_layers=36, q_lora_rank=1024,
    qk_nope_head_dim=64, qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_interleave=True,
    rope_parameters=_YARN, rope_theta=10_000.0, routed_scaling_factor=1.0, tie_word_embeddings=False,
    topk_group=1, v_head_dim=128, vocab_size=131_072,
)  # fmt: skip

FAMILY = Family(
    name="mistral4",
    model_types=("mistral4",),
    architecture="Mistral4ForCausalLM",
    template=ModelConfig(attention=MLAConfig()),
    defaults=_DEFAULTS,
    null=dict(q_lora_rank=None, rope_parameters=_YARN, rope_theta=None),
    fields=(*DECODER, *MLA, *GROUPED_ROUTER),
    fixed={"hidden_act": ("silu",)},
    harmless=HARMLESS_HERE,
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *MLA_WEIGHTS,
            *DENSE,
            Rule("mlp.gate.weight", "mlp.router.weight"),
            experts_fused("mlp.experts"),
            *SHARED,
        ),
    ),
    read=_read,
    write=_write,
    presets={
        "mistral-small-4-119b": dict(
            first_k_dense_replace=0, hidden_size=4096, intermediate_size=12_288, kv_lora_rank=256,
            max_position_embeddings=1_048_576, moe_intermediate_size=2048, n_group=1, n_routed_experts=128,
            n_shared_experts=1, norm_topk_prob=True, num_attention_heads=32, num_experts_per_tok=4,
            num_hidden_layers=36, q_lora_rank=1024, qk_nope_head_dim=64, qk_rope_head_dim=64,
            rms_norm_eps=1e-6, rope_interleave=True, rope_parameters=_YARN, routed_scaling_factor=1.0,
            topk_group=1, v_head_dim=128, vocab_size=131_072,
        ),
    },
)  # fmt: skip
