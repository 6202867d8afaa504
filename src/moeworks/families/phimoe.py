"""Phi-3.5-MoE (Microsoft 2024): LayerNorms with biases, sparsemixer routing, LongRoPE.

Beyond original_max_position_embeddings this follows the documented rule, long_factor and long_mscale, where
transformers 5 applies short_factor with long_mscale. The preset's factors are those of the published
config.json as MindSpeed-LLM's script for this model quotes them; two other projects quote the first eight of
each. Training takes the deterministic choice of inference instead of SparseMixer's sampling.
"""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field
from moeworks.families.parts import DECODER, GQA, read_biased_gqa, write_biased_gqa
from moeworks.families.weights import ATTENTION, MIXTRAL_IN_MEMORY, MIXTRAL_MOE, NORMS, TOP

_WEIGHTS = WeightMap(
    top=(
        *TOP,
        Rule("model.norm.bias", "final_norm.bias"),
        Rule("lm_head.bias", "lm_head.bias"),
    ),
    layer=(
        *NORMS,
        Rule("input_layernorm.bias", "attention_norm.bias"),
        Rule("post_attention_layernorm.bias", "mlp_norm.bias"),
        *ATTENTION,
        *MIXTRAL_MOE,
    ),
    renamed=((".mlp.router.", ".mlp.gate."), *MIXTRAL_IN_MEMORY),
)

_LONG = (
    1.0199999809265137, 1.0299999713897705, 1.0399999618530273, 1.0499999523162842, 1.0499999523162842,
    1.0499999523162842, 1.059999942779541, 1.059999942779541, 1.059999942779541, 1.059999942779541,
    1.059999942779541, 1.059999942779541, 1.0999999046325684, 1.1799999475479126, 1.1799999475479126,
    1.3700000047683716, 1.4899998903274536, 2.109999895095825, 2.8899998664855957, 3.9499998092651367,
    4.299999713897705, 6.429999828338623, 8.09000015258789, 10.690000534057617, 12.050000190734863,
    18.229999542236328, 18.84000015258789, 19.899999618530273, 21.420000076293945, 26.200000762939453,
    34.28000259399414, 34.590003967285156, 38.730003356933594, 40.22000503540039, 42.54000473022461,
    44.000003814697266, 47.590003967285156, 54.750003814697266, 56.19000244140625, 57.44000244140625,
    57.4900016784668, 61.20000076293945, 61.540000915527344, 61.75, 61.779998779296875,
    62.06999969482422, 63.11000061035156, 63.43000030517578, 63.560001373291016, 63.71000289916992,
    63.92000198364258, 63.94000244140625, 63.94000244140625, 63.96000289916992, 63.980003356933594,
    64.0300064086914, 64.0300064086914, 64.0300064086914, 64.04000854492188, 64.10000610351562,
    64.19000244140625, 64.20999908447266, 64.75, 64.95999908447266,
)  # fmt: skip
_SHORT = (
    1.0, *(1.0399999618530273,) * 3, *(1.0499999523162842,) * 10, *(1.059999942779541,) * 2,
    *(1.0699999332427979,) * 4, 1.1399999856948853, *(1.159999966621399,) * 4, 1.1799999475479126,
    1.1999999284744263, 1.3199999332427979, 1.3399999141693115, 1.3499999046325684, 1.3999998569488525,
    1.4799998998641968, 1.4999998807907104, 1.589999794960022, 1.6499998569488525, 1.71999990940094,
    1.8999998569488525, *(1.9099998474121094,) * 2, 1.9899998903274536, *(1.9999998807907104,) * 2,
    *(2.009999990463257,) * 17, 2.0999999046325684, 2.319999933242798, 2.419999837875366,
    2.5899999141693115, 2.7899999618530273,
)  # fmt: skip
_LONGROPE = dict(
    type="longrope", original_max_position_embeddings=4096, long_mscale=1.243163121016122,
    short_mscale=1.243163121016122, long_factor=list(_LONG), short_factor=list(_SHORT),
)  # fmt: skip

_DEFAULTS = dict(
    attention_bias=False, hidden_act="silu", hidden_size=4096, intermediate_size=6400, lm_head_bias=False,
    max_position_embeddings=131_072, num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32,
    num_key_value_heads=8, num_local_experts=16, rms_norm_eps=1e-05, rope_theta=1_000_000.0,
    router_jitter_noise=0.01, sliding_window=None, tie_word_embeddings=False, vocab_size=32_064,
)  # fmt: skip

FAMILY = Family(
    name="phimoe",
    model_types=("phimoe",),
    architecture="PhimoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False),
        norm=NormConfig(kind="layer", bias=True),
        router=RouterConfig(score="sparsemixer", renormalize=False),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("lm_head_bias", "lm_head_bias"),
        Field("sliding_window", "attention.window"),
        Field("num_local_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("router_jitter_noise", "router.sparsemixer_eps"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"hidden_act": ("silu",)},
    harmless=frozenset({"input_jitter_noise", "hidden_dropout"}),
    weights=_WEIGHTS,
    read=read_biased_gqa,
    write=write_biased_gqa,
    presets={
        "phi-3.5-moe": dict(
            attention_bias=True, hidden_size=4096, intermediate_size=6400, lm_head_bias=True,
            max_position_embeddings=131_072, num_attention_heads=32, num_experts_per_tok=2,
            num_hidden_layers=32, num_key_value_heads=8, num_local_experts=16, rms_norm_eps=1e-5,
            rope_scaling=_LONGROPE, rope_theta=10_000.0, router_jitter_noise=0.01, sliding_window=131_072,
            vocab_size=32_064,
        ),
    },
)  # fmt: skip
