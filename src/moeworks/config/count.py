"""Parameters, FLOPs and bytes of a model, as functions of its config; no torch, no weights.

Letters as in the code: V vocabulary, D d_model, H query heads, G key/value heads, P head_dim, F d_expert,
E experts, K top_k, L sequence length.
"""

import math
from dataclasses import dataclass

from moeworks.config.model import GATED, ModelConfig, MoEConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model by component, over all layers. Buffers (expert_bias, rotary tables) are none."""

    embedding: int
    """Token embedding [V, D]; the output projection too when it is tied."""
    attention: int
    """Query, key, value and output projections with their biases."""
    norms: int
    """RMSNorm weights: two per layer, those of queries and keys, and the last one."""
    dense_mlp: int
    """Feed-forward blocks of the dense layers."""
    router: int
    """Router weights, with the router's bias and its noise weights."""
    experts: int
    """All routed experts."""
    shared: int
    """Shared experts and their token gates."""
    lm_head: int
    """Output projection [V, D]; 0 when it is the embedding."""
    active_experts: int
    """The part of `experts` that one token uses; not a component of its own."""

    @property
    def total(self) -> int:
        """All parameters; a tied embedding counts once."""
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
    expert = _mlp(model.d_model, moe.d_expert, moe.activation, bias=moe.expert_linear_bias)
    return ParameterCount(
        embedding=model.vocab_size * model.d_model,
        attention=model.num_layers * _attention(model),
        norms=_norms(model),
        dense_mlp=(model.num_layers - moe_layers) * _dense_mlp(model),
        router=moe_layers * _router(moe),
        experts=moe_layers * moe.num_experts * expert,
        shared=moe_layers * _shared(moe),
        lm_head=0 if model.tie_embeddings else model.vocab_size * model.d_model,
        active_experts=moe_layers * _experts_per_token(moe) * expert,
    )


def count_flops(model: ModelConfig, seq_len: int, *, training: bool) -> int:
    """Floating-point operations per token in sequences of `seq_len` tokens.

    A product of [m, k] and [k, n] counts 2 m n k; nothing but matrix products counts. Attention scores and
    values count for all L x L pairs, masked ones too, as in torch.utils.flop_counter. Zero-computation
    experts make this an upper bound, as with `ParameterCount.active`.

    With `training` it is forward and backward: three times the forward pass, without what recomputation
    (activation checkpointing, flash attention) adds: the model FLOPs of PaLM (Chowdhery et al. 2022,
    appendix B). The noise of noisy_top_k exists only there.
    """
    moe, moe_layers = model.moe, len(model.moe_layers)
    scores_and_values = 4 * seq_len * model.attention.num_heads * model.head_dim
    weights = (
        model.num_layers * _attention_weights(model)
        + (model.num_layers - moe_layers)
        * _matrices(model.mlp.mlp_activation)
        * model.d_model
        * model.mlp.d_ff
        + moe_layers * _moe_weights_used(moe, training=training)
        + model.vocab_size * model.d_model
    )
    forward = 2 * weights + model.num_layers * scores_and_values
    return 3 * forward if training else forward


def count_bytes(model: ModelConfig, bytes_per_parameter: float) -> int:
    """Bytes of all parameters, e.g. at 2 bytes (bfloat16) or 0.5 (4 bits), rounded up."""
    return math.ceil(count_parameters(model).total * bytes_per_parameter)


def count_kv_bytes(model: ModelConfig, bytes_per_value: float) -> int:
    """Bytes that one token takes in the key/value cache of all layers, rounded up."""
    values = 2 * model.num_layers * model.attention.num_kv_heads * model.head_dim
    return math.ceil(values * bytes_per_value)


# One layer's pieces.


def _attention_weights(model: ModelConfig) -> int:
    heads = 2 * model.attention.num_heads + 2 * model.attention.num_kv_heads
    return heads * model.head_dim * model.d_model


def _attention(model: ModelConfig) -> int:
    outputs = (model.attention.num_heads + 2 * model.attention.num_kv_heads) * model.head_dim
    return _attention_weights(model) + outputs * model.attention.qkv_bias


def _norms(model: ModelConfig) -> int:
    per_layer = 2 * model.d_model + 2 * model.head_dim * model.attention.qk_norm
    return model.num_layers * per_layer + model.d_model


def _matrices(activation: str) -> int:
    return 3 if activation in GATED else 2


def _mlp(d_model: int, width: int, activation: str, *, bias: bool) -> int:
    """A feed-forward block: gate and up (or up alone) to `width`, and down."""
    matrices = _matrices(activation)
    biases = (matrices - 1) * width + d_model
    return matrices * d_model * width + biases * bias


def _dense_mlp(model: ModelConfig) -> int:
    return _mlp(model.d_model, model.mlp.d_ff, model.mlp.mlp_activation, bias=model.mlp.mlp_bias)


def _router(moe: MoEConfig) -> int:
    return moe.num_routes * (moe.d_model * (1 + moe.noisy_top_k) + moe.router_bias)


def _shared(moe: MoEConfig) -> int:
    if moe.num_shared_experts == 0:
        return 0
    block = _mlp(moe.d_model, moe.shared_width, moe.activation, bias=False)
    return block + moe.d_model * moe.shared_token_gate


def _experts_per_token(moe: MoEConfig) -> int:
    return min(moe.top_k, moe.num_experts)


def _moe_weights_used(moe: MoEConfig, *, training: bool) -> int:
    """Entries of the matrices of a MoE layer that one token is multiplied with."""
    router = moe.num_routes * moe.d_model * (1 + (moe.noisy_top_k and training))
    expert = _matrices(moe.activation) * moe.d_model * moe.d_expert
    return router + _experts_per_token(moe) * expert + _shared(moe)
