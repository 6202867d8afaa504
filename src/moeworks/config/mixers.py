"""Configs of the mixers of a decoder layer: several kinds of attention, and a recurrence.

Every mixer is a frozen dataclass whose field `kind` tells it apart in JSON. A model has one for all of its
layers (ModelConfig.attention), or several and a list of which layer has which.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from moeworks.config.rope import RopeConfig
from moeworks.errors import check


@dataclass(frozen=True, kw_only=True)
class GQAConfig:
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    kind: Literal["gqa"] = "gqa"
    """Grouped-query attention."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int = 4
    """Key/value heads, a divisor of num_heads: num_heads is multi-head attention, 1 is multi-query."""
    head_dim: int | None = None
    """Width of one head; None is d_model / num_heads."""
    v_head_dim: int | None = None
    """Width of a value; None is the width of a query (MiMo-V2-Flash has narrower values)."""
    qk_norm: bool = True
    """Whether queries and keys are normalised."""
    qk_norm_kind: Literal["head", "flat", "l2"] = "head"
    """Norm of queries and keys: of each head (Qwen3), of all heads as one vector (OLMoE), or of each head
    without a weight (Llama 4)."""
    qk_norm_after_rope: bool = False
    """Whether queries and keys are normalised after their rotation instead of before it."""
    qkv_bias: bool = False
    """Whether the query, key and value projections have biases."""
    output_bias: bool = False
    """Whether the output projection has a bias."""
    qkv_clip: float | None = None
    """Largest magnitude of queries, keys and values, which are clamped to it (OLMoE, DBRX)."""
    softmax_scale: float | None = None
    """Factor of the scores; None is head_dim^-0.5."""
    value_scale: float = 1.0
    """Factor of the values (MiMo-V2-Flash)."""
    score_softcap: float | None = None
    """Cap of the scores, which become cap * tanh(score / cap) (Grok-1)."""
    window: int | None = None
    """Positions that a token sees, its own and those before it (sliding window); None is all of them."""
    chunk: int | None = None
    """Length of blocks: a token sees the earlier positions of its own block (Llama 4)."""
    sinks: bool = False
    """Whether every head has a trained logit that takes part in the softmax without a value (gpt-oss)."""
    output_gate: bool = False
    """Whether the heads' output is multiplied by the sigmoid of a projection of the input (Qwen3-Next)."""
    temperature_floor: int | None = None
    """In layers of Llama 4 without positions: queries grow with log(1 + floor((position + 1) / this))."""
    temperature_scale: float = 0.1
    """Factor of that growth."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    mask_documents: bool = True
    """Whether attention in packed batches stops at document boundaries."""

    def __post_init__(self) -> None:
        check(self.num_heads >= 1, "attention.num_heads", self.num_heads, "must be at least 1")
        check(
            self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads == 0,
            "attention.num_kv_heads",
            self.num_kv_heads,
            f"must divide num_heads = {self.num_heads}",
        )
        _check_head_dim(self.head_dim)
        _check_theta(self.rope_theta)
        scale = self.value_scale
        check(0 < scale < math.inf, "attention.value_scale", scale, "must be positive and finite")
        for name in ("qkv_clip", "softmax_scale", "score_softcap"):
            value = getattr(self, name)
            check(value is None or value > 0, f"attention.{name}", value, "must be positive, or None")
        for name in ("window", "chunk", "temperature_floor", "v_head_dim"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"attention.{name}", value, "must be at least 1, or None")
        check(
            self.window is None or self.chunk is None,
            "attention.chunk",
            self.chunk,
            f"cannot be combined with window = {self.window}; set one of the two",
        )
        check(
            self.score_softcap is None or not self.sinks,
            "attention.score_softcap",
            self.score_softcap,
            "cannot be combined with sinks; set one of the two",
        )


@dataclass(frozen=True, kw_only=True)
class IndexerConfig:
    """DeepSeek sparse attention (DeepSeek-V3.2): a cheap scorer chooses the keys that a query sees."""

    num_heads: int = 64
    """Heads of the scorer."""
    head_dim: int = 128
    """Width of one head of the scorer; its keys have one head."""
    top_k: int = 2048
    """Keys that a query keeps."""
    rope_style: Literal["half", "interleaved"] = "half"
    """Pairs of the scorer's rotation, which may differ from the attention's own."""
    shared: bool = False
    """Whether the layer has no scorer, and takes the keys of the nearest earlier layer that has one
    (GLM-5.2)."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "top_k"):
            check(getattr(self, name) >= 1, f"indexer.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values come from a small latent."""

    kind: Literal["mla"] = "mla"
    """Multi-head latent attention."""
    num_heads: int = 4
    """Number of heads."""
    q_lora_rank: int | None = None
    """Width of the latent of queries; None projects queries without a latent."""
    kv_lora_rank: int = 32
    """Width of the latent of keys and values, which the cache holds."""
    nope_head_dim: int = 16
    """Width of the part of a query or key that has no positions."""
    rope_head_dim: int = 8
    """Width of the part with rotary positions; that of the key is shared by all heads, and cached."""
    v_head_dim: int = 16
    """Width of a value."""
    latent_eps: float = 1e-6
    """Epsilon of the RMSNorms of the latents: published models use 1e-6 whatever their norm_eps is."""
    bias: bool = False
    """Whether the projections into the latents and the output projection have biases."""
    scale_latents: bool = False
    """Whether queries are multiplied by sqrt(d_model / q_lora_rank) and the latent of keys and values by
    sqrt(d_model / kv_lora_rank), so that their variances are those without latents (LongCat-Flash)."""
    softmax_scale: float | None = None
    """Factor of the scores; None is (nope_head_dim + rope_head_dim)^-0.5, times the square of YaRN's
    mscale."""
    indexer: IndexerConfig | None = None
    """Scorer of sparse attention, which chooses the keys that a query sees; None is all keys."""
    temperature_floor: int | None = None
    """Mistral 4: queries grow with log(1 + floor(position / this))."""
    temperature_scale: float = 0.1
    """Factor of that growth."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope: RopeConfig = field(default_factory=lambda: RopeConfig(style="interleaved"))
    mask_documents: bool = True
    """Whether attention in packed batches stops at document boundaries."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_lora_rank", "nope_head_dim", "v_head_dim"):
            check(getattr(self, name) >= 1, f"attention.{name}", getattr(self, name), "must be at least 1")
        width = self.rope_head_dim
        check(width >= 2 and width % 2 == 0, "attention.rope_head_dim", width, "must be even, at least 2")
        check(
            self.q_lora_rank is None or self.q_lora_rank >= 1,
            "attention.q_lora_rank",
            self.q_lora_rank,
            "must be at least 1, or None",
        )
        check(
            self.indexer is None or (self.q_lora_rank is not None and self.indexer.head_dim >= width),
            "attention.indexer",
            self.indexer,
            f"needs q_lora_rank, and heads at least as wide as rope_head_dim = {width}",
        )
        check(
            not self.scale_latents or self.q_lora_rank is not None,
            "attention.scale_latents",
            self.scale_latents,
            "needs q_lora_rank",
        )
        floor = self.temperature_floor
        check(
            floor is None or floor >= 1, "attention.temperature_floor", floor, "must be at least 1, or None"
        )
        _check_theta(self.rope_theta)
        check(self.latent_eps > 0, "attention.latent_eps", self.latent_eps, "must be positive")

    @property
    def qk_head_dim(self) -> int:
        """Width of a query."""
        return self.nope_head_dim + self.rope_head_dim

    @property
    def own_indexer(self) -> IndexerConfig | None:
        """The indexer if this layer has the weights of one."""
        return None if self.indexer is None or self.indexer.shared else self.indexer


@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig:
    """Gated delta rule (Yang et al. 2024): a recurrence with a matrix as state instead of attention."""

    kind: Literal["gated_delta"] = "gated_delta"
    """Gated delta rule."""
    num_key_heads: int = 2
    """Heads of queries and keys."""
    num_value_heads: int = 4
    """Heads of values, and states; a multiple of num_key_heads."""
    key_head_dim: int = 16
    """Width of a query or key: the rows of a state."""
    value_head_dim: int = 16
    """Width of a value: the columns of a state."""
    conv_kernel: int = 4
    """Width in positions of the causal convolution before the recurrence."""
    decay: Literal["head", "channel"] = "head"
    """Decays: one per value head, or one per row of its state (Kimi delta attention)."""
    latent_rank: int | None = None
    """Width of the latents that decays and the gate of the output come from; None takes the input itself."""
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    """Activation of the gate of the output."""
    mask_documents: bool = True
    """Whether the state in packed batches starts anew at document boundaries."""

    def __post_init__(self) -> None:
        for name in ("num_key_heads", "key_head_dim", "value_head_dim", "conv_kernel"):
            check(getattr(self, name) >= 1, f"attention.{name}", getattr(self, name), "must be at least 1")
        rank = self.latent_rank
        check(rank is None or rank >= 1, "attention.latent_rank", rank, "must be at least 1, or None")
        values = self.num_value_heads
        check(
            values >= 1 and values % self.num_key_heads == 0,
            "attention.num_value_heads",
            values,
            f"must be a multiple of num_key_heads = {self.num_key_heads}",
        )

    @property
    def key_width(self) -> int:
        """Width of all queries, or of all keys, of a token."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        """Width of all values of a token."""
        return self.num_value_heads * self.value_head_dim

    @property
    def num_decays(self) -> int:
        """Number of decays of a token."""
        return self.num_value_heads * (self.key_head_dim if self.decay == "channel" else 1)


@dataclass(frozen=True, kw_only=True)
class MixtureOfAttentionConfig:
    """Mixture of attention heads (Zhang et al. 2022; JetMoE): experts project queries and outputs.

    All experts share keys and values; a token's heads are num_kv_heads for each of its top_k experts.
    """

    kind: Literal["mixture_of_attention"] = "mixture_of_attention"
    """Mixture of attention heads."""
    num_kv_heads: int = 4
    """Key/value heads, and query heads of one expert."""
    head_dim: int = 32
    """Width of one head."""
    num_experts: int = 8
    """Number of experts."""
    top_k: int = 2
    """Experts per token; their weights are a softmax over the chosen logits."""
    output_bias: bool = True
    """Whether the mixed output has a bias."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    mask_documents: bool = True
    """Whether attention in packed batches stops at document boundaries."""

    def __post_init__(self) -> None:
        check(self.num_kv_heads >= 1, "attention.num_kv_heads", self.num_kv_heads, "must be at least 1")
        _check_head_dim(self.head_dim)
        check(
            2 <= self.top_k <= self.num_experts,
            "attention.top_k",
            self.top_k,
            f"must lie between 2 and num_experts = {self.num_experts}",
        )
        _check_theta(self.rope_theta)


MixerConfig = GQAConfig | MLAConfig | GatedDeltaConfig | MixtureOfAttentionConfig
"""Union of the configs of all mixers."""


def check_shared_indexers(mixer_of_layers: Iterable[MixerConfig]) -> None:
    """Raise ConfigError if a layer shares an indexer's choice and no earlier layer makes that choice."""
    own: int | None = None
    for layer, mixer in enumerate(mixer_of_layers):
        index = mixer.indexer if isinstance(mixer, MLAConfig) else None
        if index is None:
            continue
        check(
            not index.shared or own == index.top_k,
            "attention.indexer.shared",
            True,
            f"layer {layer} needs an earlier layer with an indexer of its own and top_k = {index.top_k}",
        )
        own = own if index.shared else index.top_k


def _check_theta(theta: float) -> None:
    check(0 < theta < math.inf, "attention.rope_theta", theta, "must be positive and finite")


def _check_head_dim(head_dim: int | None) -> None:
    check(
        head_dim is None or (head_dim >= 2 and head_dim % 2 == 0),
        "attention.head_dim",
        head_dim,
        "must be even (rotary positions turn pairs)",
    )
