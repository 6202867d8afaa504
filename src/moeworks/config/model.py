"""The shape of a decoder, as frozen dataclasses without torch.

A model is orthogonal groups (mixers, norms, mlp, router, experts, shared, capacity) under one ModelConfig;
a model family is a choice of values. Mixers are in mixers.py, routers in router.py. MoEConfig is the flat
union of the groups that make up one MoE layer: it inherits their fields, so each field has one home.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from moeworks.config.layout import LayerPatternConfig, NormConfig
from moeworks.config.mixers import (
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
    check_shared_indexers,
)
from moeworks.config.router import RouterConfig
from moeworks.errors import check

Activation = Literal["swiglu", "geglu", "relu", "gelu", "relu2", "geglu_tanh", "clamped_swiglu"]
GATED: frozenset[str] = frozenset({"swiglu", "geglu", "geglu_tanh", "clamped_swiglu"})


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The feed-forward block of the layers that are dense."""

    d_ff: int = 384
    """Hidden width of a dense feed-forward block."""
    mlp_activation: Activation = "swiglu"
    """Activation: swiglu, geglu, geglu_tanh and clamped_swiglu are gated (three matrices), the others plain
    (two)."""
    mlp_bias: bool = False
    """Whether the projections of the dense block have biases."""

    def __post_init__(self) -> None:
        check(self.d_ff >= 1, "mlp.d_ff", self.d_ff, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """The routed experts: small feed-forward blocks of equal shape."""

    d_expert: int = 128
    """Hidden width of one expert (F)."""
    activation: Activation = "swiglu"
    """Activation of the experts and the shared experts, as mlp.activation."""
    expert_linear_bias: bool = False
    """Whether experts have biases (gpt-oss); the bias of the output is weighted like the output."""
    mixed_output_bias: bool = False
    """Whether the sum of the experts' outputs has a bias (JetMoE)."""
    recompute_experts: bool = False
    """Whether the hidden activations of the experts are computed again in the backward pass instead of being
    kept: less memory for a fifth more arithmetic."""

    def __post_init__(self) -> None:
        check(self.d_expert >= 1, "experts.d_expert", self.d_expert, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SharedExpertsConfig:
    """Experts that every token visits (DeepSeekMoE section 3.2)."""

    num_shared_experts: int = 0
    """Number of shared experts, which are computed as one block of as many times the width."""
    d_shared: int | None = None
    """Hidden width of one shared expert; None is d_expert."""
    shared_token_gate: bool = False
    """Whether the output of the shared experts is multiplied by sigmoid(x w) per token (Qwen2-MoE)."""

    def __post_init__(self) -> None:
        check(
            self.num_shared_experts >= 0,
            "shared.num_shared_experts",
            self.num_shared_experts,
            "must not be negative",
        )
        check(
            self.d_shared is None or self.d_shared >= 1,
            "shared.d_shared",
            self.d_shared,
            "must be at least 1, or None for d_expert",
        )
        check(
            self.num_shared_experts > 0 or not self.shared_token_gate,
            "shared.shared_token_gate",
            self.shared_token_gate,
            "needs num_shared_experts >= 1",
        )


@dataclass(frozen=True, kw_only=True)
class CapacityConfig:
    """A limit on the tokens of one expert. None, the default, is dropless: nothing is ever dropped."""

    capacity_factor: float | None = None
    """Factor of an expert's limit in training, ceil(factor * T * K / E) assignments; None is no limit."""
    eval_capacity_factor: float | None = None
    """Factor of an expert's limit in evaluation; None is no limit."""
    min_capacity: int = 1
    """Lower bound of that limit; the number of tokens is the upper bound."""
    drop_policy: Literal["position", "probability", "batch_priority"] = "position"
    """Order of dropping over the limit: later tokens first, or the smallest routing probabilities, or later
    choices and then tokens with the smallest best probability (Riquelme et al. 2021)."""

    def __post_init__(self) -> None:
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            check(
                value is None or value > 0,
                f"capacity.{name}",
                value,
                "must be positive, or None for dropless",
            )
        check(self.min_capacity >= 1, "capacity.min_capacity", self.min_capacity, "must be at least 1")

    def looks_ahead(self, *, training: bool) -> str | None:
        """Reason why the experts of a token depend on later tokens; None where they do not."""
        limited = (self.capacity_factor if training else self.eval_capacity_factor) is not None
        if not limited or self.drop_policy == "position":
            return None
        return "over capacity a token loses its expert to later ones with a greater probability"


@dataclass(frozen=True, kw_only=True)
class MoEConfig(RouterConfig, ExpertsConfig, SharedExpertsConfig, CapacityConfig):
    """One MoE layer: the fields of its router, experts, shared experts and capacity, flat.

    >>> MoEConfig(d_model=512, d_expert=256, num_experts=32, top_k=4).num_routes
    32
    """

    d_model: int
    """Width of the tokens that enter and leave the layer (D)."""

    @property
    def shared_width(self) -> int:
        """Hidden width of the one block that computes all shared experts; 0 when there are none."""
        return self.num_shared_experts * (self.d_shared or self.d_expert)

    def __post_init__(self) -> None:
        check(self.d_model >= 1, "d_model", self.d_model, "must be at least 1")
        for group in (RouterConfig, ExpertsConfig, SharedExpertsConfig, CapacityConfig):
            group.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only language model."""

    vocab_size: int = 2048
    """Tokens in the vocabulary (V)."""
    d_model: int = 128
    """Width of the residual stream (D)."""
    num_layers: int = 4
    """Number of decoder layers."""
    max_seq_len: int = 1024
    """Longest sequence, which is the length of the rotary tables."""
    tie_embeddings: bool = True
    """Whether the output projection is the embedding."""
    lm_head_bias: bool = False
    """Whether the output projection has a bias; it is then not tied."""
    embedding_scale: float = 1.0
    """Factor of the token embeddings."""
    residual_scale: float = 1.0
    """Factor of what a layer adds to the residual stream (Granite, MiniCPM)."""
    logit_scale: float = 1.0
    """Factor of the logits."""
    num_mtp_layers: int = 0
    """Number of blocks that predict tokens further ahead (multi-token prediction, DeepSeek-V3 section
    2.2)."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""
    norm: NormConfig = field(default_factory=NormConfig)
    attention: MixerConfig = field(default_factory=GQAConfig)
    mixers: tuple[MixerConfig, ...] = ()
    """Mixers beside `attention`, for models whose layers differ."""
    layer_mixers: tuple[int, ...] | None = None
    """Number of the mixer of each layer: 0 is `attention`, n the n-th of `mixers`; None is `attention`
    everywhere."""
    pattern: LayerPatternConfig = field(default_factory=LayerPatternConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    shared: SharedExpertsConfig = field(default_factory=SharedExpertsConfig)
    capacity: CapacityConfig = field(default_factory=CapacityConfig)

    @property
    def moe(self) -> MoEConfig:
        """The config of this model's MoE layers."""
        groups = (self.router, self.experts, self.shared, self.capacity)
        values = {f.name: getattr(group, f.name) for group in groups for f in fields(group)}
        values["choice"] = self.router.choice.in_vocabulary(self.vocab_size)
        return MoEConfig(d_model=self.d_model, **values)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold a MoE."""
        return self.pattern.moe_layers(self.num_layers)

    @property
    def head_dim(self) -> int:
        """Width of one head (P) of a model with grouped-query attention."""
        return self.gqa_head_dim(self.attention)

    def gqa_head_dim(self, mixer: MixerConfig) -> int:
        """Width of one head of `mixer`, which has grouped queries."""
        rule = "must be 'gqa': other kinds have no single head_dim"
        check(isinstance(mixer, GQAConfig), "attention.kind", mixer.kind, rule)
        assert isinstance(mixer, GQAConfig)
        return mixer.head_dim or self.d_model // mixer.num_heads

    def mixer(self, layer: int) -> MixerConfig:
        """The mixer of one layer, counted from 0."""
        choice = 0 if self.layer_mixers is None else self.layer_mixers[layer]
        return (self.attention, *self.mixers)[choice]

    @property
    def mixtures_of_attention(self) -> tuple[tuple[int, MixtureOfAttentionConfig], ...]:
        """The layers whose mixer is a mixture of attention, each with its config."""
        mixers = ((layer, self.mixer(layer)) for layer in range(self.num_layers))
        return tuple((layer, m) for layer, m in mixers if isinstance(m, MixtureOfAttentionConfig))

    @property
    def mtp_like(self) -> int:
        """The layer that multi-token prediction layers are like: the last one that needs no earlier one."""

        def shares(layer: int) -> bool:
            mixer = self.mixer(layer)
            return isinstance(mixer, MLAConfig) and mixer.indexer is not None and mixer.indexer.shared

        return next(layer for layer in reversed(range(self.num_layers)) if not shares(layer))

    @property
    def dense_blocks(self) -> int:
        """Number of layers that have a dense block."""
        return self.num_layers - (0 if self.pattern.shortcut else len(self.moe_layers))

    @property
    def mixer_of_layers(self) -> tuple[MixerConfig, ...]:
        """The mixer of each layer."""
        return tuple(self.mixer(layer) for layer in range(self.num_layers))

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "max_seq_len"):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        check(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "must be positive")
        for name in ("embedding_scale", "residual_scale", "logit_scale"):
            scale = getattr(self, name)
            check(0 < scale < math.inf, f"model.{name}", scale, "must be positive and finite")
        check(
            not (self.lm_head_bias and self.tie_embeddings),
            "model.lm_head_bias",
            self.lm_head_bias,
            "needs tie_embeddings = False",
        )
        check(self.num_mtp_layers >= 0, "model.num_mtp_layers", self.num_mtp_layers, "must not be negative")
        check(
            self.num_mtp_layers == 0 or not self.router.choice.rewarded,
            "model.num_mtp_layers",
            self.num_mtp_layers,
            f"must be 0 with router.choice = {self.router.choice.kind!r}, whose reward is the next token's"
            " loss",
        )
        choice = self.router.choice
        check(
            choice.sparse,
            "model.router.choice",
            choice.kind,
            f"is not for a decoder: {choice.looks_ahead(training=True)}; the layer for encoders is"
            " moeworks.SoftMoE",
        )
        self._check_mixers()
        layers = self.moe_layers
        check(
            all(0 <= i < self.num_layers for i in layers),
            "model.pattern.explicit",
            layers,
            f"names a layer outside 0 .. {self.num_layers - 1}",
        )
        self.pattern.check_shortcut(self.num_layers, self.norm.placement)

    def _check_mixers(self) -> None:
        for mixer in (self.attention, *self.mixers):
            if isinstance(mixer, GQAConfig):
                self._check_gqa(mixer)
        chosen = self.layer_mixers
        check(
            chosen is None or len(chosen) == self.num_layers,
            "model.layer_mixers",
            chosen,
            f"must name a mixer for each of the {self.num_layers} layers",
        )
        check(
            all(0 <= n <= len(self.mixers) for n in chosen or ()),
            "model.layer_mixers",
            chosen,
            f"names a mixer outside 0 .. {len(self.mixers)}",
        )
        check_shared_indexers(self.mixer_of_layers)

    def _check_gqa(self, mixer: GQAConfig) -> None:
        heads = mixer.num_heads
        check(
            mixer.head_dim is not None or self.d_model % (2 * heads) == 0,
            "model.d_model",
            self.d_model,
            f"must be a multiple of 2 * num_heads = {2 * heads} unless attention.head_dim is given",
        )
        width, turned = self.gqa_head_dim(mixer), mixer.rope.dim
        check(
            turned is None or turned <= width,
            "attention.rope.dim",
            turned,
            f"exceeds the width of a head, {width}",
        )
