"""The tensors of GGUF files by llama.cpp's names, and how its converter permutes and packs them.

The architectures "llama", "deepseek" and "granitemoe" have the rows of queries and keys permuted, because
llama.cpp turns neighbours there; the others do not, or turn neighbours in the first place.
"""

from collections.abc import Callable
from typing import Any

from moeworks.config.mixers import GQAConfig, MLAConfig
from moeworks.config.weight_rules import Either, Place, Rule, Rules, View, WeightMap
from moeworks.families.weights import half

ROPE_FREQS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def _both(theirs: str, ours: str, view: View | None = None, **options: Any) -> tuple[Rule, ...]:
    """A weight and a bias."""
    return tuple(Rule(f"{theirs}.{kind}", f"{ours}.{kind}", view, **options) for kind in ("weight", "bias"))


_TOP: Rules = (
    Rule("token_embd.weight", "embed.weight"),
    *_both("output_norm", "final_norm"),
    *_both("output", "lm_head"),
)


def _permuted(place: Place, t: Any) -> Any:
    """Rows of heads, halves and pairs as rows of heads, pairs and halves."""
    mixer = place.mixer
    assert isinstance(mixer, GQAConfig)
    width = place.model.gqa_head_dim(mixer)
    return t.unflatten(0, (-1, 2, width // 2)).transpose(1, 2)


def _gate_or_up(number: int) -> Callable[..., Any]:
    """Gate or up of all experts."""
    return lambda place, t: t.unflatten(1, (2, -1))[:, number]


def _qkv(*, permuted: bool = False) -> tuple[Rule, ...]:
    view, flatten = (_permuted, (0, 2)) if permuted else (None, None)
    return (
        *_both("attn_q", "attention.q_proj", view, flatten=flatten),
        *_both("attn_k", "attention.k_proj", view, flatten=flatten),
        *_both("attn_v", "attention.v_proj"),
    )


def _attention(*qkv: Rule | Either) -> Rules:
    return (
        *qkv,
        *_both("attn_output", "attention.o_proj"),
        Rule("attn_q_norm.weight", "attention.q_norm.weight"),
        Rule("attn_k_norm.weight", "attention.k_norm.weight"),
        Rule("attn_sinks.weight", "attention.sinks"),
    )


_FUSED: tuple[Rule, ...] = tuple(
    Rule(
        f"attn_qkv.{kind}", tuple(f"attention.{n}_proj.{kind}" for n in "qkv"), lambda place, *qkv: list(qkv)
    )
    for kind in ("weight", "bias")
)


def _heads(place: Place, t: Any) -> Any:
    """[H, nope + v, rank] of the projection from the latents."""
    mixer = place.mixer
    assert isinstance(mixer, MLAConfig)
    return t.unflatten(0, (mixer.num_heads, -1))


def _keys(place: Place, t: Any) -> Any:
    """[H, rank, nope]."""
    assert isinstance(place.mixer, MLAConfig)
    return _heads(place, t)[:, : place.mixer.nope_head_dim].transpose(1, 2)


def _values(place: Place, t: Any) -> Any:
    """[H, v, rank]."""
    assert isinstance(place.mixer, MLAConfig)
    return _heads(place, t)[:, place.mixer.nope_head_dim :]


_MLA: Rules = (
    Rule("attn_q.weight", "attention.q_proj.weight"),
    Rule("attn_q_a.weight", "attention.q_a_proj.weight"),
    Rule("attn_q_a_norm.weight", "attention.q_a_norm.weight"),
    Rule("attn_q_b.weight", "attention.q_b_proj.weight"),
    Rule("attn_kv_a_mqa.weight", "attention.kv_a_proj.weight"),
    Rule("attn_kv_a_norm.weight", "attention.kv_a_norm.weight"),
    Rule("attn_output.weight", "attention.o_proj.weight"),
    # Split since llama.cpp multiplies with each on its own, whole in files from before that.
    Either((
        (
            Rule("attn_k_b.weight", "attention.kv_b_proj.weight", _keys),
            Rule("attn_v_b.weight", "attention.kv_b_proj.weight", _values),
        ),
        (Rule("attn_kv_b.weight", "attention.kv_b_proj.weight"),),
    )),
)  # fmt: skip
_BLOCKS: Rules = (
    *_both("attn_norm", "attention_norm"),
    *_both("ffn_gate", "mlp.gate_up_proj", half(0)),
    *_both("ffn_up", "mlp.gate_up_proj", half(1)),
    *_both("ffn_down", "mlp.down_proj"),
    *_both("ffn_gate_inp", "mlp.router"),
    Rule("exp_probs_b.bias", "mlp.router.expert_bias"),
    Either(
        (
            (
                Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", _gate_or_up(0)),
                Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj", _gate_or_up(1)),
                Rule("ffn_down_exps.weight", "mlp.experts.down_proj"),
            ),
            # Files from before April 2024 hold each expert apart.
            (
                Rule("ffn_gate.{e}.weight", "mlp.experts.gate_up_proj", half(0)),
                Rule("ffn_up.{e}.weight", "mlp.experts.gate_up_proj", half(1)),
                Rule("ffn_down.{e}.weight", "mlp.experts.down_proj"),
            ),
        )
    ),
    Rule("ffn_gate_exps.bias", "mlp.experts.gate_up_bias", _gate_or_up(0)),
    Rule("ffn_up_exps.bias", "mlp.experts.gate_up_bias", _gate_or_up(1)),
    Rule("ffn_down_exps.bias", "mlp.experts.down_bias"),
    *_both("ffn_gate_shexp", "mlp.shared.gate_up_proj", half(0)),
    *_both("ffn_up_shexp", "mlp.shared.gate_up_proj", half(1)),
    *_both("ffn_down_shexp", "mlp.shared.down_proj"),
    Rule("ffn_gate_inp_shexp.weight", "mlp.shared_token_gate.weight", lambda place, t: t[0]),
)
_MTP: Rules = (
    Rule("nextn.enorm.weight", "embed_norm.weight"),
    Rule("nextn.hnorm.weight", "hidden_norm.weight"),
    Rule("nextn.eh_proj.weight", "proj.weight"),
    Rule("nextn.shared_head_norm.weight", "final_norm.weight"),
)
_IGNORED = (
    ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS, "blk.*.nextn.embed_tokens.weight",
    "blk.*.nextn.shared_head_head.weight", "blk.*.attn_kv_b.weight",
)  # fmt: skip
"""Tables that the config holds, and copies."""


def _map(attention: Rules, norms: Rules) -> WeightMap:
    return WeightMap(
        layer_prefix="blk.{i}.",
        top=_TOP,
        layer=(*attention, *norms, *_BLOCKS),
        mtp=_MTP,
        ignored=_IGNORED,
    )


_FFN_NORM = _both("ffn_norm", "mlp_norm")
_POST_NORM = _both("post_attention_norm", "mlp_norm")

PLAIN = _map(_attention(*_qkv()), _FFN_NORM)
PERMUTED = _map(_attention(*_qkv(permuted=True)), _FFN_NORM)
POST_NORM = _map(_attention(*_qkv()), _POST_NORM)
LATENT = _map(_MLA, _FFN_NORM)
MAYBE_FUSED = _map(_attention(Either((_qkv(), _FUSED))), _FFN_NORM)
FUSED = _map(_attention(*_FUSED), _both("attn_output_norm", "mlp_norm"))
SANDWICH = _map(
    _attention(*_qkv()),
    (
        *_FFN_NORM,
        Rule("attn_output_norm.weight", "attention_post_norm.weight"),
        Either((
            (Rule("layer_output_norm.weight", "mlp_post_norm.weight"),),
            (Rule("post_ffw_norm.weight", "mlp_post_norm.weight"),),
        )),
    ),
)  # fmt: skip
