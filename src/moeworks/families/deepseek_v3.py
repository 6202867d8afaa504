"""DeepSeek-V3 and R1 (DeepSeek-AI 2024) and what has their shape: Kimi K2, Moonlight."""

from moeworks.config.mixers import MLAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, GROUPED_ROUTER, MLA, mla, read_rope, write_rope
from moeworks.families.weights import DEEPSEEK

_STYLES = {True: "interleaved", False: "half"}


def read_v3(config: Json, draft: Json) -> None:
    """The rotation, and the pairs that it turns."""
    attention = draft["attention"]
    read_rope(config, attention, attention["rope_head_dim"], draft["max_seq_len"])
    interleave = config.pop("rope_interleave", None)
    attention["rope"]["style"] = _STYLES[interleave is None or bool(interleave)]


def write_v3(model: ModelConfig, config: Json) -> None:
    """The reverse of read_v3."""
    attention = mla(model)
    write_rope(attention.rope_theta, attention.rope, config, attention.rope_head_dim)
    config["rope_interleave"] = attention.rope.style == "interleaved"
    config["num_key_value_heads"] = attention.num_heads


TEMPLATE = ModelConfig(
    attention=MLAConfig(),
    router=RouterConfig(score="sigmoid", selection_bias=True),
)
FIELDS = (
    *DECODER,
    *MLA,
    *GROUPED_ROUTER,
    Field("num_nextn_predict_layers", "num_mtp_layers", also=("num_mtp_layers",)),
)
FIXED = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
}
HARMLESS_HERE = frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"})

SHAPE = dict(
    first_k_dense_replace=3, hidden_size=7168, intermediate_size=18_432, kv_lora_rank=512,
    max_position_embeddings=163_840, moe_intermediate_size=2048, n_group=8, n_routed_experts=256,
    n_shared_experts=1, norm_topk_prob=True, num_attention_heads=128, num_experts_per_tok=8,
    num_hidden_layers=61, num_nextn_predict_layers=1, q_lora_rank=1536, qk_nope_head_dim=128,
    qk_rope_head_dim=64, rms_norm_eps=1e-6, rope_theta=10_000, routed_scaling_factor=2.5, topk_group=4,
    v_head_dim=128, vocab_size=129_280,
    rope_scaling=dict(
        type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=1.0,
        mscale_all_dim=1.0,
    ),
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=3, hidden_act="silu", hidden_size=7168,
    intermediate_size=18_432, kv_lora_rank=512, max_position_embeddings=4096, moe_intermediate_size=2048,
    n_group=8, n_routed_experts=256, n_shared_experts=1, norm_topk_prob=True, num_attention_heads=128,
    num_experts_per_tok=8, num_hidden_layers=61, num_nextn_predict_layers=1, q_lora_rank=1536,
    qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_interleave=True,
    rope_theta=10_000.0, routed_scaling_factor=2.5, tie_word_embeddings=False, topk_group=4, v_head_dim=128,
    vocab_size=129_280,
)  # fmt: skip

FAMILY = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3", "kimi_k2"),
    architecture="DeepseekV3ForCausalLM",
    template=TEMPLATE,
    defaults=_DEFAULTS,
    null=dict(q_lora_rank=None),
    fields=FIELDS,
    fixed=FIXED,
    harmless=HARMLESS_HERE,
    weights=DEEPSEEK,
    read=read_v3,
    write=write_v3,
    presets={
        "deepseek-v3": SHAPE,
        "deepseek-r1": SHAPE,
        "kimi-k2": SHAPE
        | dict(
            first_k_dense_replace=1, max_position_embeddings=131_072, n_group=1, n_routed_experts=384,
            num_attention_heads=64, num_nextn_predict_layers=0, rope_theta=50_000.0,
            routed_scaling_factor=2.827, topk_group=1, vocab_size=163_840,
            rope_scaling=dict(
                type="yarn", factor=32.0, original_max_position_embeddings=4096, beta_fast=1.0, beta_slow=1.0,
                mscale=1.0, mscale_all_dim=1.0,
            ),
        ),
        "moonlight-16b-a3b": dict(
            first_k_dense_replace=1, hidden_size=2048, intermediate_size=11_264, kv_lora_rank=512,
            max_position_embeddings=8192, moe_intermediate_size=1408, n_group=1, n_routed_experts=64,
            n_shared_experts=2, norm_topk_prob=True, num_attention_heads=16, num_experts_per_tok=6,
            num_hidden_layers=27, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64,
            rms_norm_eps=1e-5, rope_theta=50_000.0, routed_scaling_factor=2.446, topk_group=1, v_head_dim=128,
            vocab_size=163_840,
        ),
    },
)  # fmt: skip
