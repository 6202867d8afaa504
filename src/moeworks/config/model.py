"""The shape of a decoder, as frozen dataclasses without torch.

A model is orthogonal groups (mixers, norms, mlp, router, experts, shared, capacity) under one ModelConfig;
a model family is a choice of values. The mixers are in mixers.py. MoEConfig is the flat union of the groups
that make up one MoE layer: it inherits their fields, so each field has one home.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from moeworks.config.layout import LayerPatternConfig, NormConfig
from moeworks.config.mixers import GQAConfig, MixerConfig, MLAConfig, check_shared_indexers
from moeworks.errors import check

Activation = Literal["swiglu", "geglu", "relu", "gelu", "relu2", "geglu_tanh", "clamped_swiglu"]
GATED: frozenset[str] = frozenset({"swiglu", "geglu", "geglu_tanh", "clamped_swiglu"})
Score = Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"]


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The feed-forward block of the layers that are dense."""

    d_ff: int = 384
    """Hidden width of a dense feed-forward block."""
    mlp_activation: Activation = "swiglu"
    """swiglu, geglu, geglu_tanh and clamped_swiglu are gated (three matrices); the others are plain (two)."""
    mlp_bias: bool = False
    """Biases on the dense block's projections."""

    def __post_init__(self) -> None:
        check(self.d_ff >= 1, "mlp.d_ff", self.d_ff, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How a token chooses its experts. The router computes in float32 whatever the model's dtype."""

    num_experts: int = 8
    """Routed experts with weights (E)."""
    top_k: int = 2
    """Experts per token (K)."""
    num_identity_experts: int = 0
    """Extra routes that return the token itself (zero-computation experts, LongCat-Flash section 2.1)."""
    num_zero_experts: int = 0
    """Extra routes that return nothing."""
    score: Score = "softmax"
    """From router_logits to router_probs."""
    score_order: Literal["before_top_k", "after_top_k"] = "before_top_k"
    """Score all experts and then choose, or choose by logits and score the chosen (softmax, sigmoid)."""
    renormalize: bool = True
    """Divide the chosen probabilities by their sum."""
    renormalize_eps: float = 1e-20
    """Added to that sum: sigmoid scores can underflow to 0."""
    routing_scale: float = 1.0
    """Multiplies the routing weights (DeepSeek's routed_scaling_factor)."""
    weights_on: Literal["output", "input"] = "output"
    """Multiply the expert's output (usual) or its input (Llama 4) by the routing weight."""
    router_bias: bool = False
    """A trained bias on the router's logits (gpt-oss)."""
    selection_bias: bool = False
    """Keep an expert_bias that enters the choice of experts and never their weights (loss-free balancing)."""
    num_groups: int = 1
    """Groups of experts for group-limited routing (DeepSeek-V2, V3); 1 switches it off."""
    top_k_groups: int = 1
    """Groups that a token may use."""
    group_score: Literal["max", "top2_sum"] = "top2_sum"
    """A group's score: its best expert (DeepSeek-V2, without bias) or the sum of its two best (V3)."""
    input_jitter: float = 0.0
    """In training the router's input is multiplied by U(1 - x, 1 + x) (Switch section 2.3)."""
    noisy_top_k: bool = False
    """In training add N(0, 1) * softplus(x W_noise) to the logits (Shazeer et al. 2017, section 2.1)."""
    sparsemixer_eps: float = 0.01
    """sparsemixer: experts whose logit is relatively 2 * eps below the best one's leave the softmax."""

    @property
    def num_routes(self) -> int:
        """Choices that a token has: routed, identity and zero experts, in this order of ids."""
        return self.num_experts + self.num_identity_experts + self.num_zero_experts

    def __post_init__(self) -> None:
        check(self.num_experts >= 1, "router.num_experts", self.num_experts, "must be at least 1")
        for name in ("num_identity_experts", "num_zero_experts"):
            check(getattr(self, name) >= 0, f"router.{name}", getattr(self, name), "must not be negative")
        check(
            1 <= self.top_k <= self.num_routes,
            "router.top_k",
            self.top_k,
            f"must lie between 1 and the number of experts, {self.num_routes}",
        )
        check(
            self.score_order == "before_top_k" or self.score in ("softmax", "sigmoid"),
            "router.score_order",
            self.score_order,
            f"is for softmax and sigmoid, the score is {self.score}",
        )
        check(
            self.score != "sparsemixer"
            or (self.top_k == 2 and not self.selection_bias and not self.renormalize),
            "router.score",
            self.score,
            "needs top_k = 2, and neither selection_bias nor renormalize",
        )
        check(
            self.top_k > 1
            or self.num_routes == 1
            or not (self.renormalize or (self.score_order == "after_top_k" and self.score == "softmax")),
            "router.top_k",
            1,
            "with renormalize or score_order = 'after_top_k' every routing weight is 1 and the router gets no"
            " gradient; set router.renormalize to False and score_order to 'before_top_k'",
        )
        check(
            self.renormalize_eps >= 0,
            "router.renormalize_eps",
            self.renormalize_eps,
            "must not be negative",
        )
        scale = self.routing_scale
        check(0 < scale < math.inf, "router.routing_scale", scale, "must be positive and finite")
        check(0 <= self.input_jitter < 1, "router.input_jitter", self.input_jitter, "must lie in [0, 1)")
        self._check_groups()

    def _check_groups(self) -> None:
        groups, keep, routes = self.num_groups, self.top_k_groups, self.num_routes
        check(
            groups >= 1 and routes % groups == 0,
            "router.num_groups",
            groups,
            f"must divide the number of experts, {routes}",
        )
        check(
            1 <= keep <= groups, "router.top_k_groups", keep, f"must lie between 1 and num_groups = {groups}"
        )
        check(
            self.top_k <= keep * (routes // groups),
            "router.top_k",
            self.top_k,
            f"exceeds the {keep * (routes // groups)} experts in top_k_groups = {keep} groups",
        )
        check(
            groups == 1 or self.group_score == "max" or routes // groups >= 2,
            "router.group_score",
            self.group_score,
            "needs at least two experts in a group",
        )


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """The routed experts: small feed-forward blocks of equal shape."""

    d_expert: int = 128
    """Hidden width of one expert (F)."""
    activation: Activation = "swiglu"
    """As mlp_activation, for the experts and the shared experts."""
    expert_linear_bias: bool = False
    """Biases inside the experts (gpt-oss); the output bias is weighted like the output."""
    mixed_output_bias: bool = False
    """One bias on the sum of the experts' outputs (JetMoE)."""
    recompute_experts: bool = False
    """Compute the experts' hidden activations again in the backward pass instead of keeping them: less
    memory for a fifth more arithmetic."""

    def __post_init__(self) -> None:
        check(self.d_expert >= 1, "experts.d_expert", self.d_expert, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SharedExpertsConfig:
    """Experts that every token visits (DeepSeekMoE section 3.2)."""

    num_shared_experts: int = 0
    """Computed as one block of num_shared_experts times the width."""
    d_shared: int | None = None
    """Hidden width of one shared expert; None means d_expert."""
    shared_token_gate: bool = False
    """Multiply their output by sigmoid(x w) per token (Qwen2-MoE)."""

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
    """In training an expert takes at most ceil(factor * T * K / E) assignments."""
    eval_capacity_factor: float | None = None
    """The same in evaluation."""
    min_capacity: int = 1
    """A lower bound on that limit; the number of tokens is the upper one."""
    drop_policy: Literal["position", "probability"] = "position"
    """Over the limit, later tokens go first, or those with the smallest routing probability."""

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
    """Decoder layers."""
    max_seq_len: int = 1024
    """Longest sequence; rotary tables have this length."""
    tie_embeddings: bool = True
    """The output projection is the embedding."""
    lm_head_bias: bool = False
    """A bias on the output projection, which is then not tied."""
    embedding_scale: float = 1.0
    """Multiplies the token embeddings."""
    residual_scale: float = 1.0
    """Multiplies what a layer adds to the residual stream (Granite, MiniCPM)."""
    logit_scale: float = 1.0
    """Multiplies the logits."""
    num_mtp_layers: int = 0
    """Extra blocks that predict tokens further ahead (multi-token prediction, DeepSeek-V3 section 2.2)."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""
    norm: NormConfig = field(default_factory=NormConfig)
    attention: MixerConfig = field(default_factory=GQAConfig)
    mixers: tuple[MixerConfig, ...] = ()
    """More mixers beside `attention`, for models whose layers differ."""
    layer_mixers: tuple[int, ...] | None = None
    """The mixer of each layer: 0 is `attention`, n the n-th of `mixers`; None: `attention` everywhere."""
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
        check(isinstance(mixer, GQAConfig), "attention.kind", mixer.kind, "has no single head_dim")
        assert isinstance(mixer, GQAConfig)
        return mixer.head_dim or self.d_model // mixer.num_heads

    def mixer(self, layer: int) -> MixerConfig:
        """The mixer of one layer, counted from 0."""
        choice = 0 if self.layer_mixers is None else self.layer_mixers[layer]
        return (self.attention, *self.mixers)[choice]

    @property
    def mtp_like(self) -> int:
        """The layer that multi-token prediction layers are like: the last one that needs no earlier one."""

        def shares(layer: int) -> bool:
            mixer = self.mixer(layer)
            return isinstance(mixer, MLAConfig) and mixer.indexer is not None and mixer.indexer.shared

        return next(layer for layer in reversed(range(self.num_layers)) if not shares(layer))

    @property
    def dense_blocks(self) -> int:
        """How many layers have a dense block."""
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
