"""LongCat-Flash (Meituan 2025): shortcut-connected MoE, identity experts, latents scaled to unit variance.

A published layer is attention and a dense block twice, and one MoE that reads what the first block reads and
joins the stream after the second: two of our layers. Identity experts have no weights. transformers 5 gives
them a gate and an up projection all the same, which it saves and demands. Published checkpoints have none, as
far as other readers show, so neither has what is written here; in a save by transformers they are ignored.
Layers of multi-token prediction are left out, as in transformers.
"""

from dataclasses import replace

from moeworks.config.layout import LayerPatternConfig
from moeworks.config.mixers import MLAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, Rules, WeightMap
from moeworks.errors import check
from moeworks.families.base import MAX_LAYERS, Family, Field, Json, take
from moeworks.families.parts import DECODER, MLA, mla, read_rope, write_rope
from moeworks.families.weights import MLA as MLA_WEIGHTS
from moeworks.families.weights import TOP, experts, gated, plain

_PUBLISHED_LAYERS = 28
"""Where a config.json names no number."""


def _read(config: Json, draft: Json) -> None:
    doubled = config.pop("num_hidden_layers", None) or 2 * _PUBLISHED_LAYERS
    published = take(config, "num_layers", doubled // 2, null=False)
    layers = 2 * published
    check(layers <= MAX_LAYERS, "num_layers", published, f"exceeds {MAX_LAYERS // 2}")
    draft["num_layers"] = layers
    draft["pattern"]["explicit"] = list(range(0, layers, 2))
    read_rope(config, draft["attention"], draft["attention"]["rope_head_dim"], draft["max_seq_len"])


def _write(model: ModelConfig, config: Json) -> None:
    attention = mla(model)
    write_rope(attention.rope_theta, attention.rope, config, attention.rope_head_dim)
    config["num_layers"] = model.num_layers // 2
    config["num_key_value_heads"] = attention.num_heads
    config["head_dim"] = attention.rope_head_dim


def _twice(rules: Rules) -> Rules:
    """Rules of a part that a published layer has two of, by number."""
    return tuple(replace(rule, theirs=_numbered(rule.theirs)) for rule in plain(rules))


def _numbered(name: str) -> str:
    part, rest = name.split(".", 1)
    return f"{part}.{{s}}.{rest}"


_NORMS: Rules = (
    Rule("input_layernorm.{s}.weight", "attention_norm.weight"),
    Rule("post_attention_layernorm.{s}.weight", "mlp_norm.weight"),
)

_DEFAULTS = dict(
    attention_bias=False, expert_ffn_hidden_size=2048, ffn_hidden_size=12_288, hidden_act="silu",
    hidden_size=6144, kv_lora_rank=512, max_position_embeddings=131_072, moe_topk=12, n_routed_experts=512,
    num_attention_heads=64, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64,
    rms_norm_eps=1e-05, rope_theta=10_000_000.0, routed_scaling_factor=6.0, tie_word_embeddings=False,
    v_head_dim=128, vocab_size=131_072, zero_expert_num=256,
)  # fmt: skip

FAMILY = Family(
    name="longcat_flash",
    model_types=("longcat_flash",),
    architecture="LongcatFlashForCausalLM",
    template=ModelConfig(
        num_layers=2,
        attention=MLAConfig(q_lora_rank=1536, scale_latents=True),
        pattern=LayerPatternConfig(explicit=(0,), shortcut=True),
        router=RouterConfig(renormalize=False, selection_bias=True),
    ),
    defaults=_DEFAULTS,
    fields=(
        *(entry for entry in DECODER if entry.path != "num_layers"),
        *MLA,
        Field("n_routed_experts", "router.num_experts", also=("num_local_experts",)),
        Field("zero_expert_num", "router.num_identity_experts"),
        Field("moe_topk", "router.top_k", also=("num_experts_per_tok",)),
        Field("routed_scaling_factor", "router.routing_scale"),
        Field("expert_ffn_hidden_size", "experts.d_expert", also=("moe_intermediate_size",)),
        Field("ffn_hidden_size", "mlp.d_ff", also=("intermediate_size",)),
    ),
    fixed={
        "hidden_act": ("silu",),
        "zero_expert_type": ("identity",),
        "attention_method": ("MLA",),
        "mla_scale_q_lora": (True,),
        "mla_scale_kv_lora": (True,),
        "router_bias": (False,),
        "norm_topk_prob": (False,),
    },
    harmless=frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"}),
    weights=WeightMap(
        layers_in_one=2,
        top=TOP,
        layer=(
            *_NORMS,
            *_twice(MLA_WEIGHTS),
            *_twice(gated("mlps", "mlp")),
            Rule("mlp.router.classifier.weight", "shortcut.router.weight"),
            Rule("mlp.router.e_score_correction_bias", "shortcut.router.expert_bias"),
            experts("mlp.experts", ours="shortcut.experts"),
        ),
        ignored=("model.mtp.*",),
    ),
    read=_read,
    write=_write,
    presets={
        "longcat-flash": dict(
            attention_method="MLA", expert_ffn_hidden_size=2048, ffn_hidden_size=12_288, hidden_size=6144,
            kv_lora_rank=512, max_position_embeddings=131_072, mla_scale_kv_lora=True, mla_scale_q_lora=True,
            moe_topk=12, n_routed_experts=512, num_attention_heads=64, num_layers=28, q_lora_rank=1536,
            qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-5, rope_theta=10_000_000.0,
            routed_scaling_factor=6.0, v_head_dim=128, vocab_size=131_072, zero_expert_num=256,
            zero_expert_type="identity",
        ),
    },
)  # fmt: skip
