"""ERNIE 4.5 (Baidu 2025), the text models: softmax scores, a bias for the choice alone, shared experts."""

from itertools import pairwise

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.rope import RopeConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.families.base import Family, Field, Json, take
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import ATTENTION, DENSE, MOE, NORMS, SHARED, TOP


def _read(config: Json, draft: Json) -> None:
    read_gqa(config, draft)
    layers = draft["num_layers"]
    start, end = take(config, "moe_layer_start_index"), take(config, "moe_layer_end_index")
    interval = take(config, "moe_layer_interval")
    if end == -1:
        end = layers - 1
    draft["pattern"]["explicit"] = [i for i in range(start, end + 1) if (i + 1) % interval == 0]


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    moe = model.moe_layers
    gaps = {b - a for a, b in pairwise(moe)} or {1}
    config |= {"moe_layer_start_index": moe[0] if moe else model.num_layers, "moe_layer_interval": min(gaps)}
    config["moe_layer_end_index"] = moe[-1] if moe else model.num_layers - 1


_BOTH = dict(
    max_position_embeddings=131_072, moe_layer_interval=1, num_hidden_layers=28, rms_norm_eps=1e-5,
    rope_theta=500_000.0, use_bias=False, vocab_size=103_424, moe_num_experts=64,
)  # fmt: skip

_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        *DENSE,
        *MOE,
        *SHARED,
        Rule(
            "mlp.moe_statics.e_score_correction_bias",
            "mlp.router.expert_bias",
            lambda place, t: t.unsqueeze(0),
        ),
    ),
    # A multi-token prediction module that transformers leaves out too.
    ignored=("model.mtp_*",),
    renamed=((".mlp.gate.moe_statics.", ".mlp.moe_statics."),),
)

_DEFAULTS = dict(
    hidden_act="silu", hidden_size=2560, intermediate_size=12_288, max_position_embeddings=131_072,
    moe_intermediate_size=1536, moe_k=6, moe_layer_end_index=-1, moe_layer_interval=1,
    moe_layer_start_index=1, moe_norm_min=1e-12, moe_num_experts=64, moe_num_shared_experts=2,
    num_attention_heads=20, num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-05,
    rope_theta=500_000.0, tie_word_embeddings=True, use_bias=False, vocab_size=103_424,
)  # fmt: skip

FAMILY = Family(
    name="ernie4_5_moe",
    model_types=("ernie4_5_moe",),
    architecture="Ernie4_5_MoeForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm=False, rope=RopeConfig(style="interleaved")),
        router=RouterConfig(selection_bias=True),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("moe_num_experts", "router.num_experts", also=("num_experts",)),
        Field("moe_k", "router.top_k", also=("num_experts_per_tok",)),
        Field("moe_norm_min", "router.renormalize_eps"),
        Field("moe_intermediate_size", "experts.d_expert"),
        Field("intermediate_size", "mlp.d_ff"),
        Field("moe_num_shared_experts", "shared.num_shared_experts"),
    ),
    fixed={"hidden_act": ("silu",), "use_bias": (False,), "moe_gate": ("topk",)},
    harmless=frozenset({
        "moe_capacity", "moe_use_aux_free", "num_nextn_predict_layers", "multi_token_pred_lambda",
    }),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "ernie-4.5-21b-a3b": dict(
            **_BOTH, hidden_size=2560, intermediate_size=12_288, moe_intermediate_size=1536, moe_k=6,
            moe_layer_end_index=27, moe_layer_start_index=1, moe_num_shared_experts=2, num_attention_heads=20,
            num_key_value_heads=4, tie_word_embeddings=True,
        ),
        "ernie-4.5-300b-a47b": _BOTH
        | dict(
            hidden_size=8192, intermediate_size=28_672, moe_intermediate_size=3584, moe_k=8,
            moe_layer_end_index=53, moe_layer_start_index=3, moe_num_shared_experts=0, num_attention_heads=64,
            num_hidden_layers=54, num_key_value_heads=8, tie_word_embeddings=False,
        ),
    },
)  # fmt: skip
