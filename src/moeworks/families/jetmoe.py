"""JetMoE (Shen et al. 2024): experts in the attention too; the layers' norms have an epsilon of 1e-6."""

from moeworks.config.mixers import MixtureOfAttentionConfig
from moeworks.config.model import ExpertsConfig, ModelConfig, NormConfig, RouterConfig
from moeworks.config.weight_rules import Rule, WeightMap
from moeworks.errors import ConfigError
from moeworks.families.base import Family, Field, Json
from moeworks.families.parts import DECODER, read_rope, write_rope
from moeworks.families.weights import NORMS, TOP

_LAYER_EPS = 1e-6


def _read(config: Json, draft: Json) -> None:
    attention, final = draft["attention"], draft["norm_eps"]
    draft["norm"]["final_eps"] = None if final == _LAYER_EPS else final
    draft["norm_eps"] = _LAYER_EPS
    attention["num_experts"], attention["top_k"] = draft["router"]["num_experts"], draft["router"]["top_k"]
    read_rope(config, attention, attention["head_dim"], draft["max_seq_len"])


def _write(model: ModelConfig, config: Json) -> None:
    mixer = model.attention
    if not isinstance(mixer, MixtureOfAttentionConfig):
        raise ConfigError(f"model.attention.kind = {mixer.kind!r}: this family has 'mixture_of_attention'")
    write_rope(mixer.rope_theta, mixer.rope, config, mixer.head_dim)
    config["rms_norm_eps"] = model.norm.final_eps or _LAYER_EPS


_WEIGHTS = WeightMap(
    top=TOP,
    layer=(
        *NORMS,
        Rule("self_attention.kv_proj.weight", "attention.kv_proj.weight"),
        Rule("self_attention.experts.bias", "attention.output_bias"),
        Rule("self_attention.experts.router.layer.weight", "attention.router.weight"),
        Rule("self_attention.experts.input_linear.weight", "attention.experts.q_proj"),
        Rule("self_attention.experts.output_linear.weight", "attention.experts.o_proj"),
        Rule("mlp.bias", "mlp.experts.mixed_bias"),
        Rule("mlp.router.layer.weight", "mlp.router.weight"),
        Rule("mlp.input_linear.weight", "mlp.experts.gate_up_proj"),
        Rule("mlp.output_linear.weight", "mlp.experts.down_proj"),
    ),
)

_DEFAULTS = dict(
    activation_function="silu", hidden_size=2048, intermediate_size=5632, kv_channels=128,
    max_position_embeddings=4096, num_experts_per_tok=2, num_hidden_layers=12, num_key_value_heads=16,
    num_local_experts=8, rms_norm_eps=1e-06, rope_theta=10_000.0, tie_word_embeddings=True,
    vocab_size=32_000,
)  # fmt: skip

FAMILY = Family(
    name="jetmoe",
    model_types=("jetmoe",),
    architecture="JetMoeForCausalLM",
    template=ModelConfig(
        norm=NormConfig(),
        attention=MixtureOfAttentionConfig(),
        router=RouterConfig(score_order="after_top_k"),
        experts=ExpertsConfig(mixed_output_bias=True),
    ),
    defaults=_DEFAULTS,
    fields=(
        *DECODER,
        Field("num_key_value_heads", "attention.num_kv_heads"),
        Field("kv_channels", "attention.head_dim", also=("head_dim",)),
        Field("num_local_experts", "router.num_experts"),
        Field("num_experts_per_tok", "router.top_k"),
        Field("intermediate_size", "experts.d_expert"),
    ),
    fixed={"activation_function": ("silu",)},
    harmless=frozenset({"aux_loss_coef", "num_attention_heads"}),
    weights=_WEIGHTS,
    read=_read,
    write=_write,
    presets={
        "jetmoe-8b": dict(
            hidden_size=2048, intermediate_size=5632, kv_channels=128, max_position_embeddings=4096,
            num_experts_per_tok=2, num_hidden_layers=24, num_key_value_heads=16, num_local_experts=8,
            rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=True, vocab_size=32_000,
        ),
    },
)  # fmt: skip
