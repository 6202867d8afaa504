"""Parameters, FLOPs and cache entries of one mixer, as functions of its config."""

from dataclasses import dataclass

from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)


@dataclass(frozen=True, kw_only=True)
class MixerCount:
    """Counts of the mixer of one layer."""

    matrices: int
    """Entries of the matrices that every token is multiplied with."""
    others: int = 0
    """Parameters of biases, sinks, convolutions and decay rates."""
    norms: int = 0
    """Parameters of the norms inside the mixer."""
    router: int = 0
    """Parameters of the router of a mixture of attention."""
    experts: int = 0
    """Parameters of all experts of a mixture of attention."""
    active_experts: int = 0
    """Parameters of the experts that one token uses."""
    per_key: int = 0
    """Multiply-adds for scores and values, over all heads, per query and key that the query sees."""
    reach: int | None = None
    """Most keys that a query sees; None is all."""
    per_token: int = 0
    """Multiply-adds per token of a recurrence, for any length."""
    scorer_per_key: int = 0
    """Multiply-adds per query and key of a sparse indexer, which looks at all keys."""
    cached: int = 0
    """Values per token in the cache."""
    cached_expanded: int = 0
    """Values per token of a cache that holds the keys and values of every head, where that differs."""
    cache_reach: int | None = None
    """Tokens that the cache keeps at most; None means all."""
    state_bytes: int = 0
    """Bytes of a sequence's state, whatever its length and whatever type the cache has."""
    decode_per_key: int | None = None
    """`per_key` in decoding where that differs: MLA scores and sums latents."""


def count_mixer(mixer: MixerConfig, d_model: int) -> MixerCount:
    """The counts of `mixer` in a model of width `d_model`."""
    match mixer:
        case GQAConfig():
            return _gqa(mixer, d_model)
        case MLAConfig():
            return _mla(mixer, d_model)
        case GatedDeltaConfig():
            return _gated_delta(mixer, d_model)
        case MixtureOfAttentionConfig():
            return _mixture_of_attention(mixer, d_model)


def _gqa(mixer: GQAConfig, d_model: int) -> MixerCount:
    width = mixer.head_dim or d_model // mixer.num_heads
    v_width = mixer.v_head_dim or width
    queries, keys = mixer.num_heads * width, mixer.num_kv_heads * width
    outputs, values = mixer.num_heads * v_width, mixer.num_kv_heads * v_width
    biases = (queries + keys + values) * mixer.qkv_bias + d_model * mixer.output_bias
    biases += outputs * mixer.output_gate * mixer.qkv_bias
    norms = {"head": 2 * width, "flat": queries + keys, "l2": 0}[mixer.qk_norm_kind] * mixer.qk_norm
    return MixerCount(
        matrices=d_model * (queries + keys + values + outputs * (1 + mixer.output_gate)),
        others=biases + mixer.num_heads * mixer.sinks,
        norms=norms,
        per_key=queries + outputs,
        reach=mixer.window or mixer.chunk,
        cached=keys + values,
        cached_expanded=keys + values,
        cache_reach=mixer.window or mixer.chunk,
    )


def _mla(mixer: MLAConfig, d_model: int) -> MixerCount:
    heads, rank, index = mixer.num_heads, mixer.kv_lora_rank, mixer.own_indexer
    queries, values = heads * mixer.qk_head_dim, heads * mixer.v_head_dim
    latent = rank + mixer.rope_head_dim
    if mixer.q_lora_rank is None:
        q_matrices, q_norm, biases = d_model * queries, 0, 0
    else:
        q_matrices = mixer.q_lora_rank * (d_model + queries)
        q_norm, biases = mixer.q_lora_rank, mixer.q_lora_rank
    expand = rank * heads * (mixer.nope_head_dim + mixer.v_head_dim)
    matrices = q_matrices + d_model * latent + expand + values * d_model
    scorer = scorer_norm = scorer_per_key = index_key = 0
    if index is not None and mixer.q_lora_rank is not None:
        width = index.num_heads * index.head_dim
        scorer = mixer.q_lora_rank * width + d_model * (index.head_dim + index.num_heads)
        scorer_norm, scorer_per_key, index_key = 2 * index.head_dim, width, index.head_dim
    return MixerCount(
        matrices=matrices + scorer,
        others=(biases + latent + d_model) * mixer.bias,
        norms=q_norm + rank + scorer_norm,
        per_key=queries + values,
        reach=None if mixer.indexer is None else mixer.indexer.top_k,
        scorer_per_key=scorer_per_key,
        cached=latent + index_key,
        cached_expanded=queries + values + index_key,
        decode_per_key=heads * (latent + rank),
    )


def _gated_delta(mixer: GatedDeltaConfig, d_model: int) -> MixerCount:
    keys, values, heads = mixer.key_width, mixer.value_width, mixer.num_value_heads
    channels, rank = 2 * keys + values, mixer.latent_rank
    state = heads * mixer.key_head_dim * mixer.value_head_dim
    controls = values + mixer.num_decays
    return MixerCount(
        # Queries, keys, values; the gate of the output and the decays; a step size per head; the output.
        matrices=d_model * (channels + heads + values)
        + (d_model * controls if rank is None else rank * (2 * d_model + controls)),
        others=channels * mixer.conv_kernel + mixer.num_decays + heads,
        norms=mixer.value_head_dim,
        # What the state holds for the key, the update, what it holds for the query.
        per_token=3 * state,
        # Engines keep the state in float32, and the convolution's last inputs as activations, in 2 bytes.
        state_bytes=4 * state + 2 * channels * (mixer.conv_kernel - 1),
    )


def _mixture_of_attention(mixer: MixtureOfAttentionConfig, d_model: int) -> MixerCount:
    width = mixer.num_kv_heads * mixer.head_dim
    expert = 2 * width * d_model
    return MixerCount(
        matrices=d_model * 2 * width,
        others=d_model * mixer.output_bias,
        router=mixer.num_experts * d_model,
        experts=mixer.num_experts * expert,
        active_experts=mixer.top_k * expert,
        per_key=2 * mixer.top_k * width,
        cached=2 * width,
        cached_expanded=2 * width,
    )
