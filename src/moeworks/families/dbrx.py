"""DBRX (Databricks 2024): LayerNorms without biases, clipped queries, keys and values."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, NormConfig
from moeworks.config.weight_rules import Rule, View, WeightMap
from moeworks.errors import check
from moeworks.families.base import HARMLESS, Family, Field, Json, take
from moeworks.families.parts import gqa, read_rope, write_rope
from moeworks.families.weights import TOP, experts_transposed

_ATTENTION = dict(kv_n_heads=1)
_FEED_FORWARD = dict(ffn_hidden_size=3584, moe_num_experts=4, moe_top_k=1, moe_normalize_expert_weights=1.0)
"""What attn_config and ffn_config mean that leave a key out."""
_IGNORED = {"attn_pdrop", "hidden_size", "moe_loss_weight", "moe_jitter_eps", "uniform_expert_assignment"}


def _read(config: Json, draft: Json) -> None:
    attention = _ATTENTION | take(config, "attn_config", {})
    feed_forward = _FEED_FORWARD | take(config, "ffn_config", {})
    mixer = draft["attention"]
    mixer["num_kv_heads"] = take(attention, "kv_n_heads")
    mixer["qkv_clip"] = take(attention, "clip_qkv", None)
    if (theta := attention.pop("rope_theta", None)) is not None:
        config["rope_theta"] = theta
    read_rope(config, mixer, draft["d_model"] // mixer["num_heads"], draft["max_seq_len"])
    draft["router"] |= {
        "num_experts": take(feed_forward, "moe_num_experts"),
        "top_k": take(feed_forward, "moe_top_k"),
    }
    draft["experts"]["d_expert"] = take(feed_forward, "ffn_hidden_size")
    # Weights are divided by their norm of this order; they are positive, so order 1 divides by their sum.
    order = feed_forward.pop("moe_normalize_expert_weights", 1.0)
    check(order in (None, 1), "moe_normalize_expert_weights", order, "must be 1 or null")
    draft["router"]["renormalize"] = order is not None
    name = (take(feed_forward, "ffn_act_fn", {}) or {}).get("name", "silu")
    check(name == "silu", "ffn_act_fn", name, "the family dbrx has only 'silu'")
    rest = {k: v for k, v in {**attention, **feed_forward}.items() if k not in HARMLESS | _IGNORED and v}
    check(not rest, "attn_config or ffn_config", rest, "unknown, and it may change what the model computes")


def _write(model: ModelConfig, config: Json) -> None:
    mixer, router = gqa(model), model.router
    config["attn_config"] = {"clip_qkv": mixer.qkv_clip, "kv_n_heads": mixer.num_kv_heads}
    config["attn_config"]["rope_theta"] = mixer.rope_theta
    config["ffn_config"] = {
        "ffn_act_fn": {"name": "silu"},
        "ffn_hidden_size": model.experts.d_expert,
        "hidden_size": model.d_model,
        "moe_normalize_expert_weights": 1.0 if router.renormalize else None,
        "moe_num_experts": router.num_experts,
        "moe_top_k": router.top_k,
    }
    write_rope(mixer.rope_theta, mixer.rope, config, model.gqa_head_dim(mixer))


def _rows(number: int) -> View:
    """Gate or up of all experts, [E, F, D]."""
    return lambda place, t: t.unflatten(1, (2, -1))[:, number]


_WEIGHTS = WeightMap(
    layer_prefix="transformer.blocks.{i}.",
    top=(
        Rule("transformer.wte.weight", "embed.weight"),
        Rule("transformer.norm_f.weight", "final_norm.weight"),
        TOP[2],
    ),
    layer=(
        Rule("norm_attn_norm.norm_1.weight", "attention_norm.weight"),
        Rule("norm_attn_norm.norm_2.weight", "mlp_norm.weight"),
        Rule(
            "norm_attn_norm.attn.Wqkv.weight",
            tuple(f"attention.{n}_proj.weight" for n in "qkv"),
            lambda place, *qkv: list(qkv),
        ),
        Rule("norm_attn_norm.attn.out_proj.weight", "attention.o_proj.weight"),
        Rule("ffn.router.layer.weight", "mlp.router.weight"),
        Rule("ffn.experts.mlp.w1", "mlp.experts.gate_up_proj", _rows(0), flatten=(0, 1)),
        Rule("ffn.experts.mlp.v1", "mlp.experts.gate_up_proj", _rows(1), flatten=(0, 1)),
        Rule("ffn.experts.mlp.w2", "mlp.experts.down_proj", experts_transposed, flatten=(0, 1)),
    ),
)

_DEFAULTS = dict(
    d_model=2048, max_seq_len=2048, n_heads=16, n_layers=24, rope_theta=10_000.0, tie_word_embeddings=False,
    vocab_size=32_000,
)  # fmt: skip

FAMILY = Family(
    name="dbrx",
    model_types=("dbrx",),
    architecture="DbrxForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False), norm=NormConfig(kind="layer"), norm_eps=1e-5
    ),
    defaults=_DEFAULTS,
    fields=(
        Field("vocab_size", "vocab_size"),
        Field("d_model", "d_model", also=("hidden_size",)),
        Field("n_layers", "num_layers", also=("num_hidden_layers",)),
        Field("n_heads", "attention.num_heads", also=("num_attention_heads",)),
        Field("max_seq_len", "max_seq_len", also=("max_position_embeddings",)),
        Field("tie_word_embeddings", "tie_embeddings"),
    ),
    harmless=frozenset({"num_key_value_heads"}),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "dbrx": dict(
            d_model=6144, max_seq_len=32_768, n_heads=48, n_layers=40, vocab_size=100_352,
            attn_config=dict(clip_qkv=8, kv_n_heads=8, rope_theta=500_000),
            ffn_config=dict(ffn_hidden_size=10_752, moe_num_experts=16, moe_top_k=4),
        ),
    },
)  # fmt: skip
