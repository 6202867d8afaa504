"""DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024): latent attention, softmax scores, device-limited routing.

No release sets norm_topk_prob. Where a config does, weights are divided by their sum as in DeepSeek's code;
transformers 5 ignores the key.
"""

from moeworks.config.mixers import MLAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, MLA, mla, read_rope, write_rope
from moeworks.families.weights import DEEPSEEK

_METHODS = ("greedy", "group_limited_greedy")


def _read(config: Json, draft: Json) -> None:
    read_rope(config, draft["attention"], draft["attention"]["rope_head_dim"], draft["max_seq_len"])
    method = config.pop("topk_method", "greedy")
    check(method in _METHODS, "topk_method", method, f"must be {' or '.join(_METHODS)}")
    groups = config.pop("n_group", None) or 1, config.pop("topk_group", None) or 1
    if method != "greedy":
        draft["router"] |= {"num_groups": groups[0], "top_k_groups": groups[1]}
    router = draft["router"]
    check(
        not router["renormalize"] or router["routing_scale"] == 1,
        "norm_topk_prob",
        True,
        f"cannot be combined with routed_scaling_factor = {router['routing_scale']}: one release of"
        " DeepSeek's code for this model drops the factor then, another applies it",
    )


def _write(model: ModelConfig, config: Json) -> None:
    attention, router = mla(model), model.router
    write_rope(attention.rope_theta, attention.rope, config, attention.rope_head_dim)
    config["num_key_value_heads"] = attention.num_heads
    config["topk_method"] = _METHODS[router.num_groups > 1]
    config |= {"n_group": router.num_groups, "topk_group": router.top_k_groups}


def _yarn(mscale: float) -> Json:
    return dict(
        type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
        mscale=mscale, mscale_all_dim=mscale,
    )  # fmt: skip


_BOTH = dict(
    first_k_dense_replace=1, kv_lora_rank=512, max_position_embeddings=163_840, moe_layer_freq=1,
    n_shared_experts=2, norm_topk_prob=False, num_experts_per_tok=6, qk_nope_head_dim=128,
    qk_rope_head_dim=64, rms_norm_eps=1e-6, rope_scaling=_yarn(0.707), rope_theta=10_000,
    scoring_func="softmax", v_head_dim=128,
    vocab_size=102_400,
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=0, hidden_act="silu", hidden_size=4096,
    intermediate_size=11_008, kv_lora_rank=512, max_position_embeddings=2048, mlp_bias=False,
    moe_intermediate_size=1407, n_routed_experts=64, n_shared_experts=2, norm_topk_prob=False,
    num_attention_heads=32, num_experts_per_tok=None, num_hidden_layers=32, q_lora_rank=1536,
    qk_nope_head_dim=128, qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_theta=10_000.0,
    routed_scaling_factor=1.0, tie_word_embeddings=False, topk_method='greedy', v_head_dim=128,
    vocab_size=102_400,
)  # fmt: skip

FAMILY = Family(
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    architecture="DeepseekV2ForCausalLM",
    template=ModelConfig(
        attention=MLAConfig(),
        router=RouterConfig(renormalize=False, group_score="max"),
    ),
    defaults=_DEFAULTS,
    null=dict(q_lora_rank=None),
    fields=(
        *DECODER,
        *MLA,
        Field("n_routed_experts", "router.num_experts", also=("num_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("norm_topk_prob", "router.renormalize"),
        Field("routed_scaling_factor", "router.routing_scale"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("n_shared_experts", "shared.num_shared_experts"),
        Field("first_k_dense_replace", "pattern.first_dense"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        "mlp_bias": (False,),
    },
    harmless=frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"}),
    weights=DEEPSEEK,
    read=_read,
    write=_write,
    presets={
        "deepseek-v2": dict(
            **_BOTH, hidden_size=5120, intermediate_size=12_288, moe_intermediate_size=1536, n_group=8,
            n_routed_experts=160, num_attention_heads=128, num_hidden_layers=60, q_lora_rank=1536,
            routed_scaling_factor=16.0, topk_group=3, topk_method="group_limited_greedy",
        ),
        "deepseek-v2-lite": dict(
            **_BOTH, hidden_size=2048, intermediate_size=10_944, moe_intermediate_size=1408, n_group=1,
            n_routed_experts=64, num_attention_heads=16, num_hidden_layers=27, q_lora_rank=None,
            routed_scaling_factor=1.0, topk_group=1, topk_method="greedy",
        ),
    },
)  # fmt: skip
