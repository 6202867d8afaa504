"""K-EXAONE (LG AI Research 2025), model_type "exaone_moe": windows in most layers, no positions in others.

Its multi-token prediction layer is left out, as transformers does.
"""

from collections.abc import Sequence
from dataclasses import replace

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Json, take
from moeworks.families.parts import (
    DECODER,
    GQA,
    GROUPED_ROUTER,
    read_gqa,
    read_sparse_layers,
    read_windows,
    windowed,
    write_gqa,
    write_sparse_layers,
    write_windows,
)
from moeworks.families.weights import ATTENTION, DENSE, MOE, NORMS, SHARED, TOP

_RENAMED = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}


def _pattern(pattern: int | str | None, layers: int) -> Sequence[bool]:
    """Which layers have a window: all but every n-th, or those with an L in a string that repeats."""
    if isinstance(pattern, int) and pattern > 0:
        return [(i + 1) % pattern != 0 for i in range(layers)]
    if not pattern:
        return [False] * layers
    rule = "must be a number, or letters L and G"
    check(isinstance(pattern, str) and set(pattern) <= {"L", "G"}, "sliding_window_pattern", pattern, rule)
    flags = [str(pattern)[i % len(str(pattern))] == "L" for i in range(layers)]
    check(not flags[-1], "sliding_window_pattern", pattern, "leaves the last layer open; give layer_types")
    return flags


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    if (named := config.pop("is_moe_layer", None)) is not None:
        config.pop("first_last_k_dense_replace", None)
        config.setdefault("mlp_layer_types", ["sparse" if flag else "dense" for flag in named])
    read_sparse_layers(config, draft)
    window, pattern = config.pop("sliding_window"), take(config, "sliding_window_pattern", None)
    default = _pattern(None if window is None else pattern, draft["num_layers"])
    # Without any window all layers have positions.
    read_windows(config, draft, default=default, window=window, turn_full=window is None)


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config, windowed(model))
    config["sliding_window"] = write_windows(model, config)
    if model.pattern.explicit is not None:
        write_sparse_layers(model, config)


_DEFAULTS = dict(
    first_k_dense_replace=1, hidden_act="silu", hidden_size=4096, intermediate_size=16_384,
    max_position_embeddings=2048, moe_intermediate_size=1024, n_group=1, norm_topk_prob=True,
    num_attention_heads=32, num_experts=64, num_experts_per_tok=8, num_hidden_layers=32,
    num_key_value_heads=32, num_shared_experts=1, rms_norm_eps=1e-05, rope_theta=10_000.0,
    routed_scaling_factor=2.5, sliding_window=4096, sliding_window_pattern=4, tie_word_embeddings=False,
    topk_group=1, vocab_size=102_400,
)  # fmt: skip

FAMILY = Family(
    name="exaone_moe",
    model_types=("exaone_moe",),
    architecture="ExaoneMoeForCausalLM",
    template=ModelConfig(attention=GQAConfig(), router=RouterConfig(score="sigmoid", selection_bias=True)),
    defaults=_DEFAULTS,
    null=dict(sliding_window=None),
    fields=(*DECODER, *GQA, *(replace(f, key=_RENAMED.get(f.key, f.key)) for f in GROUPED_ROUTER)),
    fixed={"hidden_act": ("silu",), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    harmless=frozenset({"num_nextn_predict_layers"}),
    weights=WeightMap(
        top=TOP,
        layer=(
            *NORMS,
            *ATTENTION,
            *DENSE,
            *MOE,
            *SHARED,
            Rule("mlp.e_score_correction_bias", "mlp.router.expert_bias"),
        ),
        ignored=("mtp.*",),
        renamed=((".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),),
    ),
    read=_read,
    write=_write,
    presets={
        "k-exaone-236b-a23b": dict(
            first_k_dense_replace=1, head_dim=128, hidden_size=6144, intermediate_size=18_432,
            max_position_embeddings=262_144, moe_intermediate_size=2048, n_group=1, norm_topk_prob=True,
            num_attention_heads=64, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
            num_key_value_heads=8, num_shared_experts=1, rms_norm_eps=1e-5, rope_theta=1_000_000,
            routed_scaling_factor=2.5, sliding_window=128, sliding_window_pattern="LLLG", topk_group=1,
            vocab_size=153_600,
        ),
    },
)  # fmt: skip
