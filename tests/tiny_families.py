"""Small published configs of every family, in which every option matters; no transformers needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeworks import ModelConfig
from moeworks.families import from_hf

YARN = dict(
    rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0,
    beta_slow=1.0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
PLAIN = dict(rope_type="default", rope_theta=10_000.0)

SIZES: dict[str, Any] = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MLA = dict(
    q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12,
    num_key_value_heads=4,
)  # fmt: skip
GROUPED = dict(
    n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, n_group=4, topk_group=2,
    moe_intermediate_size=20, intermediate_size=48, first_k_dense_replace=1, norm_topk_prob=True,
    routed_scaling_factor=1.7,
)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """One configuration of one family."""

    model_type: str
    options: Mapping[str, Any]
    length: int = 40
    """Of the sequences that are compared: beyond windows, chunks and original contexts."""


def _sized(*groups: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """SIZES, and over them groups and options, the later ones winning."""
    sized = dict(SIZES)
    for group in (*groups, options):
        sized |= group
    return sized


def longcat(*groups: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """LongCat-Flash names its sizes otherwise; transformers takes the rotation's width from head_dim."""
    sized = _sized(
        *groups, num_layers=2, ffn_hidden_size=48, expert_ffn_hidden_size=20, moe_topk=3, head_dim=4,
        routed_scaling_factor=1.7, **options,
    )  # fmt: skip
    del sized["num_hidden_layers"]
    return sized


TINY: dict[str, Tiny] = {
    "llama": Tiny("llama", _sized(intermediate_size=48, rope_parameters=PLAIN)),
    "llama3": Tiny(
        "llama",
        _sized(
            intermediate_size=48, head_dim=12, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3,
            tie_word_embeddings=True,
        ),
    ),
    "mixtral": Tiny(
        "mixtral",
        _sized(intermediate_size=48, num_local_experts=6, num_experts_per_tok=2, rope_parameters=PLAIN),
    ),
    "mixtral_window": Tiny(
        "mixtral",
        _sized(
            intermediate_size=48, num_local_experts=12, num_experts_per_tok=3, sliding_window=7, head_dim=12,
            rope_parameters=PLAIN,
        ),
    ),
    "deepseek_v2": Tiny(
        "deepseek_v2",
        _sized(
            **MLA, **GROUPED | dict(norm_topk_prob=False), topk_method="group_limited_greedy",
            rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.9),
        ),
    ),
    "deepseek_v2_lite": Tiny(
        "deepseek_v2",
        _sized(
            **MLA | dict(q_lora_rank=None), **GROUPED | dict(norm_topk_prob=False, n_group=1, topk_group=1),
            topk_method="greedy", rope_parameters=PLAIN, attention_bias=True,
        ),
    ),
    "deepseek_v3": Tiny(
        "deepseek_v3",
        _sized(
            MLA, GROUPED, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=0.8),
            num_nextn_predict_layers=0,
        ),
    ),
    "deepseek_v3_half": Tiny(
        "deepseek_v3",
        _sized(
            **MLA, **GROUPED, rope_parameters=PLAIN, rope_interleave=False, attention_bias=True,
            num_nextn_predict_layers=0,
        ),
    ),
    "deepseek_v32": Tiny(
        "deepseek_v32",
        _sized(
            **MLA, **GROUPED, rope_parameters=PLAIN, index_topk=9, index_head_dim=8, index_n_heads=24,
            head_dim=4,
        ),
    ),
    "qwen2_moe": Tiny(
        "qwen2_moe",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6,
            num_experts_per_tok=3, rope_parameters=PLAIN, decoder_sparse_step=2,
        ),
    ),
    "qwen2_moe_window": Tiny(
        "qwen2_moe",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6,
            num_experts_per_tok=3, rope_parameters=PLAIN, norm_topk_prob=True, mlp_only_layers=[1],
            use_sliding_window=True, sliding_window=6, max_window_layers=3,
        ),
    ),
    "qwen3_moe": Tiny(
        "qwen3_moe",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, num_experts=12, num_experts_per_tok=3,
            head_dim=12, norm_topk_prob=True, mlp_only_layers=[0], rope_parameters=PLAIN,
        ),
    ),
    "qwen3_next": Tiny(
        "qwen3_next",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6,
            num_experts_per_tok=3, head_dim=16, linear_conv_kernel_dim=3, linear_key_head_dim=8,
            linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4,
            max_position_embeddings=256, rms_norm_eps=1e-2,
            rope_parameters=dict(PLAIN, partial_rotary_factor=0.25),
        ),
        length=140,
    ),
    "llama4": Tiny(
        "llama4_text",
        _sized(
            intermediate_size=20, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1,
            head_dim=8, interleave_moe_layer_step=2, attention_chunk_size=11, rope_parameters=LLAMA3,
            floor_scale=5, attn_scale=0.3, no_rope_layers=[1, 1, 0, 1],
        ),
    ),
    "llama4_top2": Tiny(
        "llama4_text",
        _sized(
            intermediate_size=20, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=2,
            head_dim=8, interleave_moe_layer_step=1, attention_chunk_size=9, rope_parameters=PLAIN,
            use_qk_norm=False, attn_temperature_tuning=False, attention_bias=True,
        ),
    ),
    "gpt_oss": Tiny(
        "gpt_oss",
        _sized(
            intermediate_size=24, head_dim=16, num_local_experts=6, num_experts_per_tok=3, sliding_window=8,
            rope_parameters=dict(YARN, truncate=False),
        ),
    ),
    "qwen3_5_moe": Tiny(
        "qwen3_5_moe_text",
        _sized(
            moe_intermediate_size=20, shared_expert_intermediate_size=28, num_experts=6, head_dim=16,
            num_experts_per_tok=3, linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=12,
            linear_num_key_heads=2, linear_num_value_heads=4, max_position_embeddings=256, rms_norm_eps=1e-2,
            rope_parameters=dict(PLAIN, partial_rotary_factor=0.25),
        ),
        length=140,
    ),
    "glm_moe_dsa": Tiny(
        "glm_moe_dsa",
        _sized(
            MLA, GROUPED, rope_parameters=PLAIN, index_topk=9, index_head_dim=8, index_n_heads=24, head_dim=4,
        ),
    ),
    "glm_moe_dsa_shared": Tiny(
        "glm_moe_dsa",
        _sized(
            MLA, GROUPED, rope_parameters=PLAIN, index_topk=9, index_head_dim=8, index_n_heads=24, head_dim=4,
            num_hidden_layers=5, indexer_types=["full", "shared", "full", "shared", "shared"],
        ),
    ),
    "kimi_linear": Tiny(
        "kimi_linear",
        _sized(
            MLA, moe_intermediate_size=20, intermediate_size=48, num_experts=8, num_experts_per_token=3,
            num_expert_group=4, topk_group=2, num_shared_experts=2, routed_scaling_factor=1.7,
            q_lora_rank=None, linear_head_dim=8, linear_num_heads=3, linear_conv_kernel_dim=3,
            rms_norm_eps=1e-2,
            layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"], model_max_length=256,
            max_position_embeddings=256,
        ),
        length=70,
    ),
    "flex_olmo": Tiny(
        "flex_olmo",
        _sized(intermediate_size=20, num_experts=6, num_experts_per_tok=3, rope_parameters=PLAIN),
    ),
    "solar_open": Tiny(
        "solar_open",
        _sized(
            moe_intermediate_size=20, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
            n_group=4, topk_group=2, routed_scaling_factor=1.7, head_dim=12, attention_bias=True,
            rope_parameters=PLAIN,
        ),
    ),
    "glm4_moe_lite": Tiny(
        "glm4_moe_lite",
        _sized(
            MLA, GROUPED, rope_parameters=PLAIN, n_group=1, topk_group=1,
            mlp_layer_types=["dense", "sparse", "dense", "sparse"],
        ),
    ),
    "hunyuan": Tiny(
        "hunyuan_v1_moe",
        _sized(
            intermediate_size=20, num_experts=6, moe_topk=3, head_dim=12, attention_bias=True,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="dynamic", rope_theta=10_000.0,
            alpha=50.0, factor=1.0),
        ),
    ),
    "afmoe": Tiny(
        "afmoe",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, num_experts=6, num_experts_per_tok=3, head_dim=12,
            num_dense_layers=1, num_shared_experts=2, route_scale=1.6, global_attn_every_n_layers=3,
            sliding_window=7, mup_enabled=True, rope_parameters=PLAIN,
        ),
    ),
    "gpt_oss_32": Tiny(
        "gpt_oss",
        _sized(
            intermediate_size=64, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
            rope_parameters=dict(YARN, truncate=False),
        ),
    ),
    "exaone_moe": Tiny(
        "exaone_moe",
        _sized(
            moe_intermediate_size=20, intermediate_size=48, num_experts=8, num_experts_per_tok=3, n_group=4,
            topk_group=2, num_shared_experts=2, routed_scaling_factor=1.7, head_dim=12, sliding_window=7,
            sliding_window_pattern=3, rope_parameters=PLAIN, first_k_dense_replace=2,
        ),
    ),
    "exaone_moe_named": Tiny(
        "exaone_moe",
        _sized(
            moe_intermediate_size=20, intermediate_size=48, num_experts=6, num_experts_per_tok=3,
            norm_topk_prob=False, sliding_window=5,
            layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
            mlp_layer_types=["sparse", "dense", "sparse", "sparse"], rope_parameters=YARN,
        ),
    ),
    "hy_v3": Tiny(
        "hy_v3",
        _sized(
            moe_intermediate_size=20, intermediate_size=48, num_experts=6, num_experts_per_tok=3, head_dim=12,
            num_shared_experts=2, router_scaling_factor=1.6, attention_bias=True, rope_parameters=PLAIN,
            mlp_layer_types=["dense", "sparse", "dense", "sparse"],
        ),
    ),
    "mimo_v2_flash": Tiny(
        "mimo_v2_flash",
        _sized(
            moe_intermediate_size=20, intermediate_size=48, n_routed_experts=8, num_experts_per_tok=3,
            n_group=4, topk_group=2, routed_scaling_factor=1.6, head_dim=12, v_head_dim=10, sliding_window=7,
            num_key_value_heads=1, attention_value_scale=0.6, attention_bias=True,
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.334),
                sliding_attention=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5),
            ),
        ),
    ),
    "mistral4": Tiny(
        "mistral4",
        _sized(
            MLA, GROUPED, head_dim=12,
            rope_parameters=dict(
                YARN, mscale=1.0, mscale_all_dim=0.8, llama_4_scaling_beta=0.7, partial_rotary_factor=1 / 3
            ),
        ),
    ),
    "mistral4_half": Tiny(
        # Without YaRN transformers turns the whole of a query by a table for it, and fails.
        "mistral4",
        _sized(
            MLA, GROUPED, head_dim=12, rope_interleave=False, attention_bias=True, norm_topk_prob=False,
            rope_parameters=dict(YARN, llama_4_scaling_beta=0.3, partial_rotary_factor=1 / 3),
        ),
    ),
    "mellum": Tiny(
        "mellum",
        _sized(
            moe_intermediate_size=20, intermediate_size=48, num_experts=6, num_experts_per_tok=3, head_dim=12,
            sliding_window=7, norm_topk_prob=True, attention_bias=True,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["sparse", "dense", "sparse", "sparse"],
            rope_parameters=dict(
                full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=100.0)
            ),
        ),
    ),
    "longcat_flash": Tiny(
        "longcat_flash",
        longcat(MLA, n_routed_experts=8, zero_expert_num=0, rope_parameters=PLAIN, attention_bias=True),
    ),
    "glm4_moe": Tiny(
        "glm4_moe",
        _sized(
            **GROUPED | dict(n_group=1, topk_group=1), head_dim=12, attention_bias=True, use_qk_norm=True,
            rope_parameters=dict(PLAIN, partial_rotary_factor=0.5), num_nextn_predict_layers=0,
        ),
    ),
    "glm4_moe_air": Tiny(
        "glm4_moe",
        _sized(
            **GROUPED, head_dim=16, attention_bias=False, use_qk_norm=False,
            rope_parameters=dict(PLAIN, partial_rotary_factor=0.5), num_nextn_predict_layers=0,
        ),
    ),
    "olmoe": Tiny(
        "olmoe",
        _sized(
            intermediate_size=20, num_experts=12, num_experts_per_tok=3, clip_qkv=0.8, rope_parameters=PLAIN
        ),
    ),
    "ernie4_5_moe": Tiny(
        "ernie4_5_moe",
        _sized(
            intermediate_size=48, moe_intermediate_size=20, moe_num_experts=6, moe_k=3,
            moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=3, moe_layer_interval=2,
            rope_parameters=PLAIN, tie_word_embeddings=True,
        ),
    ),
    "dots1": Tiny(
        "dots1",
        _sized(**GROUPED, rope_parameters=PLAIN, head_dim=8, sliding_window=7, max_window_layers=2),
    ),
    "minimax_m2": Tiny(
        "minimax_m2",
        _sized(
            intermediate_size=20, num_local_experts=6, num_experts_per_tok=3, head_dim=12,
            rope_parameters=dict(PLAIN, partial_rotary_factor=0.5),
        ),
    ),
    "phimoe": Tiny(
        "phimoe",
        _sized(
            intermediate_size=20, num_local_experts=6, num_experts_per_tok=2, attention_bias=True,
            lm_head_bias=True, rope_parameters=PLAIN, router_jitter_noise=0.2,
        ),
    ),
    "granitemoe": Tiny(
        "granitemoe",
        _sized(
            intermediate_size=20, num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=3.0,
            logits_scaling=2.5, residual_multiplier=0.4, attention_multiplier=0.2, attention_bias=True,
            rope_parameters=PLAIN, tie_word_embeddings=True,
        ),
    ),
    "granitemoeshared": Tiny(
        "granitemoeshared",
        _sized(
            intermediate_size=20, num_local_experts=6, num_experts_per_tok=3, embedding_multiplier=3.0,
            logits_scaling=2.5, residual_multiplier=0.4, attention_multiplier=0.2, rope_parameters=PLAIN,
            shared_intermediate_size=28,
        ),
    ),
    "dbrx": Tiny(
        "dbrx",
        dict(
            d_model=32, n_heads=4, n_layers=3, max_seq_len=64, vocab_size=97, rope_parameters=PLAIN,
            attn_config=dict(clip_qkv=0.7, kv_n_heads=2, rope_theta=10_000.0),
            ffn_config=dict(ffn_hidden_size=20, moe_num_experts=6, moe_top_k=3),
        ),
    ),
    "jetmoe": Tiny(
        "jetmoe",
        dict(
            vocab_size=97, hidden_size=32, num_hidden_layers=3, num_key_value_heads=2, kv_channels=12,
            intermediate_size=20, max_position_embeddings=64, num_local_experts=5, num_experts_per_tok=2,
            rms_norm_eps=1e-3, rope_parameters=PLAIN, tie_word_embeddings=True,
        ),
    ),
}  # fmt: skip


def tiny_config(name: str) -> ModelConfig:
    """Our config of one of them."""
    return from_hf({"model_type": TINY[name].model_type, **TINY[name].options})
