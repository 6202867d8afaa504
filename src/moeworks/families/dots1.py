"""dots.llm1 (rednote-hilab 2025): Qwen3's attention with DeepSeek-V3's router."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.families.base import Family, Json, take
from moeworks.families.parts import (
    DECODER,
    GQA,
    GROUPED_ROUTER,
    read_biased_gqa,
    read_windows,
    write_biased_gqa,
    write_windows,
)
from moeworks.families.weights import GLM


def _read(config: Json, draft: Json) -> None:
    read_biased_gqa(config, draft)
    layers = draft["num_layers"]
    window, last = config.pop("sliding_window"), take(config, "max_window_layers")
    default = [window is not None and i >= last for i in range(layers)]
    read_windows(config, draft, default=default, window=window)


def _write(model: ModelConfig, config: Json) -> None:
    write_biased_gqa(model, config)
    config["sliding_window"] = write_windows(model, config)


_DEFAULTS = dict(
    attention_bias=False, first_k_dense_replace=0, hidden_act="silu", hidden_size=4608,
    intermediate_size=10_944, max_position_embeddings=2048, max_window_layers=62,
    moe_intermediate_size=1408, n_group=1, n_routed_experts=None, n_shared_experts=None,
    norm_topk_prob=False, num_attention_heads=32, num_experts_per_tok=None, num_hidden_layers=62,
    num_key_value_heads=32, rms_norm_eps=1e-06, rope_theta=10_000.0, routed_scaling_factor=1.0,
    sliding_window=4096, tie_word_embeddings=False, topk_group=1, vocab_size=152_064,
)  # fmt: skip

FAMILY = Family(
    name="dots1",
    model_types=("dots1",),
    architecture="Dots1ForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(), router=RouterConfig(score="sigmoid", selection_bias=True)
    ),
    defaults=_DEFAULTS,
    null=dict(num_key_value_heads=None, sliding_window=None),
    fields=(*DECODER, *GQA, *GROUPED_ROUTER),
    fixed={"hidden_act": ("silu",), "moe_layer_freq": (1,), "scoring_func": ("noaux_tc", "sigmoid")},
    weights=GLM,
    read=_read,
    write=_write,
    presets={
        "dots.llm1": dict(
            first_k_dense_replace=1, hidden_size=4096, intermediate_size=10_944,
            max_position_embeddings=32_768, moe_intermediate_size=1408, n_group=1, n_routed_experts=128,
            n_shared_experts=2, norm_topk_prob=True, num_attention_heads=32, num_experts_per_tok=6,
            num_hidden_layers=62, num_key_value_heads=32, rms_norm_eps=1e-5, rope_theta=10_000_000,
            routed_scaling_factor=2.5, topk_group=1, vocab_size=152_064,
        ),
    },
)  # fmt: skip
