"""Parameters, FLOPs and bytes of a model, as functions of its config; no torch, no weights.

Letters as in the code: V vocabulary, D d_model, H query heads, G key/value heads, P head_dim, F d_expert,
E experts, K top_k, L sequence length.
"""

import math
from dataclasses import dataclass

from moeworks.config.count_mixers import MixerCount, count_mixer
from moeworks.config.model import GATED, ModelConfig, MoEConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model by component, over all layers. Buffers (expert_bias, rotary tables) are none."""

    embedding: int
    """Token embedding [V, D]; the output projection too when it is tied."""
    attention: int
    """The mixers, with their biases, without the norms, routers and experts inside them."""
    norms: int
    """Norms of the layers, of queries, keys and latents, and the last one."""
    dense_mlp: int
    """Feed-forward blocks of the dense layers."""
    router: int
    """Router weights, with the routers' biases and noise weights."""
    experts: int
    """All routed experts, those of attention too."""
    shared: int
    """Shared experts and their token gates."""
    lm_head: int
    """Output projection [V, D] with its bias; 0 when it is the embedding."""
    active_experts: int
    """Parameters of the routed experts that one token uses; a part of `experts`."""
    mtp: int = 0
    """Multi-token prediction layers, which makers leave out of the total and which decoding can leave out."""

    @property
    def total(self) -> int:
        """All parameters but those of MTP layers; a tied embedding counts once."""
        return (
            self.embedding
            + self.attention
            + self.norms
            + self.dense_mlp
            + self.router
            + self.experts
            + self.shared
            + self.lm_head
        )

    @property
    def active(self) -> int:
        """Parameters that take part in one token's forward pass: all but the routed experts it leaves out.

        The whole embedding table counts, once when tied; makers differ in this (gpt-oss leaves the input
        embedding out). With zero-computation experts a token may use fewer: then this is an upper bound.
        """
        return self.total - self.experts + self.active_experts

    @property
    def active_non_embedding(self) -> int:
        """`active` without the embedding and the output projection (Kaplan et al. 2020, section 2.1)."""
        return self.active - self.embedding - self.lm_head


def count_parameters(model: ModelConfig) -> ParameterCount:
    """The parameters of the module that `model` builds."""
    moe, moe_layers = model.moe, len(model.moe_layers)
    expert = _expert(moe)
    mixers = _mixers(model)
    return ParameterCount(
        embedding=model.vocab_size * model.d_model,
        attention=sum(mixer.matrices + mixer.others for mixer in mixers),
        norms=model.num_layers * _layer_norms(model) + _norm(model) + sum(mixer.norms for mixer in mixers),
        dense_mlp=model.dense_blocks * _dense_mlp(model),
        router=moe_layers * _router(moe) + sum(mixer.router for mixer in mixers),
        experts=moe_layers * count_experts(moe) + sum(mixer.experts for mixer in mixers),
        shared=moe_layers * _shared(moe),
        lm_head=_lm_head(model),
        active_experts=moe_layers * (_experts_per_token(moe) * expert + moe.d_model * moe.mixed_output_bias)
        + sum(mixer.active_experts for mixer in mixers),
        mtp=model.num_mtp_layers * _mtp_layer(model),
    )


def count_flops(model: ModelConfig, seq_len: int, *, training: bool) -> int:
    """Floating-point operations per token in sequences of `seq_len` tokens.

    A product of [m, k] and [k, n] counts 2 m n k; nothing but matrix products counts. Attention scores and
    values count for all L x L pairs, masked ones too, as in torch.utils.flop_counter; where a window, chunk
    or indexer bounds a query's keys, for that bound. A recurrence counts step by step. Zero-computation
    experts make this an upper bound, as with `ParameterCount.active`. MTP layers are left out.

    With `training` it is forward and backward: three times the forward pass, without what recomputation
    (activation checkpointing, flash attention) adds: the model FLOPs of PaLM (Chowdhery et al. 2022,
    appendix B). The noise of noisy_top_k exists only there.
    """
    products = sum(
        mixer.matrices
        + mixer.router
        + mixer.active_experts
        + mixer.per_token
        + mixer.per_key * _bounded(seq_len, mixer.reach)
        + mixer.scorer_per_key * seq_len
        for mixer in _mixers(model)
    )
    forward = 2 * (products + _weights_beside_mixers(model, training=training))
    return 3 * forward if training else forward


def count_decode_flops(model: ModelConfig, context: int) -> int:
    """Floating-point operations to decode one token after `context` - 1 others, as count_flops counts them.

    MLA works on its latents, with the projections of keys and values absorbed (DeepSeek-V2, section 2.1.2).
    """
    products = 0
    for mixer in _mixers(model):
        per_key = mixer.per_key if mixer.decode_per_key is None else mixer.decode_per_key
        products += mixer.matrices + mixer.router + mixer.active_experts + mixer.per_token
        products += per_key * _bounded(context, mixer.reach) + mixer.scorer_per_key * context
    return 2 * (products + _weights_beside_mixers(model, training=False))


def count_bytes(model: ModelConfig, bytes_per_parameter: float) -> int:
    """Bytes of all parameters, e.g. at 2 bytes (bfloat16) or 0.5 (4 bits), rounded up."""
    return math.ceil(count_parameters(model).total * bytes_per_parameter)


def count_kv_bytes(model: ModelConfig, bytes_per_value: float, *, expanded: bool = False) -> int:
    """Bytes that one token takes in the key/value cache of all layers, rounded up.

    MLA keeps its latent and the shared rotary key (and an indexer's key); `expanded` counts what a cache of
    every head's keys and values would take. Layers with a window hold a token only while it is inside.
    """
    return math.ceil(_cached_per_token(model, expanded=expanded) * bytes_per_value)


def count_cache_bytes(
    model: ModelConfig, context: int, bytes_per_value: float, *, expanded: bool = False
) -> int:
    """Bytes that one sequence of `context` tokens takes in all caches, rounded up.

    Windows and chunks bound what their layers keep; the states of recurrences count whatever the length, and
    whatever `bytes_per_value` is.
    """
    mixers = _mixers(model)
    values = sum(
        (mixer.cached_expanded if expanded else mixer.cached) * _bounded(context, mixer.cache_reach)
        for mixer in mixers
    )
    return math.ceil(values * bytes_per_value) + sum(mixer.state_bytes for mixer in mixers)


# One layer's pieces.


def _mixers(model: ModelConfig) -> list[MixerCount]:
    """The counts of each layer's mixer."""
    kinds = [count_mixer(mixer, model.d_model) for mixer in (model.attention, *model.mixers)]
    return [kinds[choice] for choice in model.layer_mixers or (0,) * model.num_layers]


def _bounded(length: int, limit: int | None) -> int:
    return length if limit is None else min(length, limit)


def _cached_per_token(model: ModelConfig, *, expanded: bool) -> int:
    return sum(mixer.cached_expanded if expanded else mixer.cached for mixer in _mixers(model))


def _norm(model: ModelConfig) -> int:
    return model.d_model * (1 + model.norm.bias)


def _layer_norms(model: ModelConfig) -> int:
    return _norm(model) * (4 if model.norm.placement == "sandwich" else 2)


def _lm_head(model: ModelConfig) -> int:
    return 0 if model.tie_embeddings else model.vocab_size * (model.d_model + model.lm_head_bias)


def _mtp_layer(model: ModelConfig) -> int:
    """Two norms and a projection in front, a layer like the last one, and a norm behind."""
    last = model.mtp_like
    mixer, moe = count_mixer(model.mixer(last), model.d_model), model.moe
    if last in model.moe_layers:
        feed_forward = _router(moe) + count_experts(moe) + _shared(moe)
    else:
        feed_forward = _dense_mlp(model)
    block = mixer.matrices + mixer.others + mixer.norms + mixer.router + mixer.experts + _layer_norms(model)
    return 3 * _norm(model) + 2 * model.d_model**2 + block + feed_forward


def _weights_beside_mixers(model: ModelConfig, *, training: bool) -> int:
    """Entries of the matrices outside the mixers that one token is multiplied with."""
    moe_layers = len(model.moe_layers)
    dense = _matrices(model.mlp.mlp_activation) * model.d_model * model.mlp.d_ff
    return (
        model.dense_blocks * dense
        + moe_layers * _moe_weights_used(model.moe, training=training)
        + model.vocab_size * model.d_model
    )


def _matrices(activation: str) -> int:
    return 3 if activation in GATED else 2


def _mlp(d_model: int, width: int, activation: str, *, bias: bool) -> int:
    """A feed-forward block: gate and up (or up alone) to `width`, and down."""
    matrices = _matrices(activation)
    biases = (matrices - 1) * width + d_model
    return matrices * d_model * width + biases * bias


def _dense_mlp(model: ModelConfig) -> int:
    return _mlp(model.d_model, model.mlp.d_ff, model.mlp.mlp_activation, bias=model.mlp.mlp_bias)


def _expert(moe: MoEConfig) -> int:
    return _mlp(moe.d_model, moe.d_expert, moe.activation, bias=moe.expert_linear_bias)


def count_experts(moe: MoEConfig) -> int:
    """Parameters of a layer's routed experts."""
    return moe.num_experts * _expert(moe) + moe.d_model * moe.mixed_output_bias


def _router(moe: MoEConfig) -> int:
    linear = moe.num_routes * (moe.d_model * (1 + moe.noisy_top_k) + moe.router_bias)
    return linear * moe.choice.linear + moe.choice.extra_parameters(moe.d_model)


def _shared(moe: MoEConfig) -> int:
    if moe.num_shared_experts == 0:
        return 0
    block = _mlp(moe.d_model, moe.shared_width, moe.activation, bias=False)
    return block + moe.d_model * moe.shared_token_gate


def _experts_per_token(moe: MoEConfig) -> int:
    return min(moe.top_k, moe.num_experts)


def _moe_weights_used(moe: MoEConfig, *, training: bool) -> int:
    """Entries of the matrices of a MoE layer that one token is multiplied with."""
    router = moe.num_routes * moe.d_model * (1 + (moe.noisy_top_k and training)) * moe.choice.linear
    router += moe.choice.extra_parameters(moe.d_model) * training
    expert = _matrices(moe.activation) * moe.d_model * moe.d_expert
    return router + _experts_per_token(moe) * expert + _shared(moe)
