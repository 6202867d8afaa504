"""MiniMax-M2 (MiniMax 2025): full attention, queries and keys normalised over all heads, sigmoid scores."""

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import check
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, GQA, read_gqa, write_gqa
from moeworks.families.weights import ATTENTION, MIXTRAL_IN_MEMORY, MIXTRAL_MOE, NORMS, TOP


def _read(config: Json, draft: Json) -> None:
    turned, width = config.pop("rotary_dim", None), config.get("head_dim")
    read_gqa(config, draft)
    if turned is not None and turned != width:
        draft["attention"]["rope"]["dim"] = turned
    kinds = config.pop("attn_type_list", None) or []
    check(set(kinds) <= {1}, "attn_type_list", kinds, "must all be 1, full attention")


def _write(model: ModelConfig, config: Json) -> None:
    write_gqa(model, config)
    if (share := config.get("partial_rotary_factor")) is not None:
        config["rotary_dim"] = round(share * config["head_dim"])


_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        *ATTENTION,
        *MIXTRAL_MOE,
        Rule("block_sparse_moe.e_score_correction_bias", "mlp.router.expert_bias"),
    ),
    ignored=("model.mtp*",),
    renamed=MIXTRAL_IN_MEMORY,
)

_DEFAULTS = dict(
    head_dim=128, hidden_act="silu", hidden_size=3072, intermediate_size=1536,
    max_position_embeddings=196_608, num_attention_heads=48, num_experts_per_tok=8, num_hidden_layers=62,
    num_key_value_heads=8, num_local_experts=256, rms_norm_eps=1e-06, rope_theta=5_000_000.0,
    router_jitter_noise=0.0, tie_word_embeddings=False, vocab_size=200_064,
)  # fmt: skip

FAMILY = Family(
    name="minimax_m2",
    model_types=("minimax_m2",),
    architecture="MiniMaxM2ForCausalLM",
    template=ModelConfig(
        attention=GQAConfig(qk_norm_kind="flat"),
        router=RouterConfig(score="sigmoid", selection_bias=True),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        *GQA,
        Field("num_local_experts", "router.num_experts", also=("num_experts",)),
        Field("num_experts_per_tok", "router.top_k"),
        Field("router_jitter_noise", "router.input_jitter"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={
        "hidden_act": ("silu",),
        "scoring_func": ("sigmoid",),
        "use_qk_norm": (True,),
        "qk_norm_type": ("per_layer",),
        "use_routing_bias": (True,),
        "shared_intermediate_size": (0,),
        "layernorm_full_attention_beta": (1.0,),
        "layernorm_linear_attention_beta": (1.0,),
        "layernorm_mlp_beta": (1.0,),
    },
    # transformers and others leave its MTP modules out; so does this.
    harmless=frozenset({
        "use_mtp", "num_mtp_modules", "mtp_transformer_layers", "mlp_intermediate_size", "shared_moe_mode",
        "max_model_len",
    }),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "minimax-m2": dict(
            head_dim=128, hidden_size=3072, intermediate_size=1536, max_position_embeddings=196_608,
            num_attention_heads=48, num_experts_per_tok=8, num_hidden_layers=62, num_key_value_heads=8,
            num_local_experts=256, rms_norm_eps=1e-6, rope_theta=5_000_000, rotary_dim=64,
            vocab_size=200_064,
        ),
    },
)  # fmt: skip
