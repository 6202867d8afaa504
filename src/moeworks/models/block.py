"""One layer of a decoder: a mixer and a feed-forward block around the residual stream."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from moeworks.config.mixers import (
    GatedDeltaConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import ModelConfig
from moeworks.layers.attention import GQAttention
from moeworks.layers.gated_delta import GatedDeltaNet
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.mixture_of_attention import MixtureOfAttention
from moeworks.layers.mla import MLAttention
from moeworks.layers.mlp import MLP
from moeworks.layers.moe import MoE
from moeworks.layers.norm import make_norm
from moeworks.ops.attention import DocumentMask
from moeworks.ops.backends import Backend
from moeworks.ops.replay import Replay
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class BlockContext:
    """Facts about the tokens that blocks need besides the stream."""

    valid_BL: Tensor | None = None
    """bool, False for padding."""
    sequence_ids_BL: Tensor | None = None
    """int64, the sequence of each token."""
    token_ids_BL: Tensor | None = None
    """int64, the tokens that the stream began with."""
    token_types_BL: Tensor | None = None
    """int64, the type of each token; None without types."""
    positions_BL: Tensor | None = None
    """int64, the position of each token in its sequence."""
    replay: Replay | None = None
    """A replay of one layer: the experts that its MoE must choose."""


@dataclass(frozen=True, eq=False)
class BlockRoutings:
    """The decisions that one layer took."""

    feed_forward: Routing | None = None
    """The decision of its MoE layer; None in a dense block."""
    attention: Routing | None = None
    """The decision of its mixture of attention; None for other mixers."""


@dataclass(frozen=True, eq=False)
class Carry:
    """Results of a layer that later ones need besides the stream."""

    shortcut_BLD: Tensor | None = None
    """The output of its MoE, which the next layer adds."""
    chosen: DocumentMask | None = None
    """The keys that the last indexer chose."""


NOTHING = Carry()


class Block(nn.Module):
    """x + f(norm(x)) for a mixer and then for a dense block or a MoE; or norms after, or on both sides.

    With a shortcut both: the dense block's output joins the stream here, the MoE's after the next layer.
    """

    def __init__(self, config: ModelConfig, layer: int, *, backend: Backend) -> None:
        super().__init__()
        self.scale = config.residual_scale
        self.placement = config.norm.placement
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = build_mixer(config, config.mixer(layer))
        self.mlp_norm = make_norm(config, config.d_model)
        mlp, shortcut, sparse = config.mlp, config.pattern.shortcut, layer in config.moe_layers
        self.mlp = (
            MoE(config.moe, backend=backend)
            if sparse and not shortcut
            else MLP(config.d_model, mlp.d_ff, mlp.mlp_activation, bias=mlp.mlp_bias)
        )
        self.shortcut = MoE(config.moe, backend=backend) if sparse and shortcut else None
        if self.placement == "sandwich":
            self.attention_post_norm = make_norm(config, config.d_model)
            self.mlp_post_norm = make_norm(config, config.d_model)

    @property
    def moe(self) -> MoE | None:
        """The block's MoE layer; None in a dense block."""
        return self.mlp if isinstance(self.mlp, MoE) else self.shortcut

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        parts = (self.attention, self.mlp, *(() if self.shortcut is None else (self.shortcut,)))
        return tuple(weight for part in parts for weight in part.residual_projections())

    def forward(
        self,
        x_BLD: Tensor,
        inputs: MixerInputs,
        context: BlockContext,
        cache: Any = None,
        carry: Carry = NOTHING,
    ) -> tuple[Tensor, BlockRoutings, Carry]:
        """The stream [B, L, D] after this layer, its routing decisions, and results that later layers need.

        `cache` fits the mixer's kind; `carry` comes from the layer before.
        """
        pre = self.placement != "post"
        normed = self.attention_norm(x_BLD) if pre else x_BLD
        attention_routing, chosen = None, carry.chosen
        if isinstance(self.attention, MLAttention):
            attended, chosen = self.attention(normed, inputs, cache, carry.chosen)
        elif isinstance(self.attention, MixtureOfAttention):
            attended, routing = self.attention(normed, inputs, cache)
            attention_routing = _with_context(routing, context)
        else:
            attended = self.attention(normed, inputs, cache)
        x_BLD = self._add(x_BLD, attended, "attention")
        normed = self.mlp_norm(x_BLD) if pre else x_BLD
        shortcut_BLD, moe = None, self.mlp if self.shortcut is None else self.shortcut
        routing = None
        if isinstance(moe, MoE):
            y_BLD, routing = moe(
                normed,
                valid=context.valid_BL,
                sequence_ids=context.sequence_ids_BL,
                token_ids=context.token_ids_BL,
                token_types=context.token_types_BL,
                positions=context.positions_BL,
                replay=context.replay,
            )
        else:
            y_BLD = moe(normed)
        if self.shortcut is not None:
            shortcut_BLD, y_BLD = y_BLD, self.mlp(normed)
        x_BLD = self._add(x_BLD, y_BLD, "mlp")
        if carry.shortcut_BLD is not None:
            x_BLD = self._add(x_BLD, carry.shortcut_BLD, "mlp")
        return x_BLD, BlockRoutings(routing, attention_routing), Carry(shortcut_BLD, chosen)

    def _add(self, x_BLD: Tensor, y_BLD: Tensor, part: str) -> Tensor:
        """The stream with a part's result added, normalised where norms come after."""
        if self.placement == "post":
            y_BLD = getattr(self, f"{part}_norm")(y_BLD)
        elif self.placement == "sandwich":
            y_BLD = getattr(self, f"{part}_post_norm")(y_BLD)
        return x_BLD + (y_BLD if self.scale == 1.0 else y_BLD * self.scale)


def _with_context(routing: Routing, context: BlockContext) -> Routing:
    """A mixture of attention's decision, with what is known of its tokens."""
    valid_BL, ids_BL = context.valid_BL, context.sequence_ids_BL
    return replace(
        routing,
        valid_T=None if valid_BL is None else valid_BL.reshape(-1),
        sequence_ids_T=None if ids_BL is None else ids_BL.reshape(-1),
    )


Mixer = GQAttention | MLAttention | GatedDeltaNet | MixtureOfAttention


def build_mixer(config: ModelConfig, mixer: MixerConfig) -> Mixer:
    """The module that implements a mixer's config."""
    if isinstance(mixer, MLAConfig):
        return MLAttention(config, mixer)
    if isinstance(mixer, GatedDeltaConfig):
        return GatedDeltaNet(config, mixer)
    if isinstance(mixer, MixtureOfAttentionConfig):
        return MixtureOfAttention(config, mixer)
    return GQAttention(config, mixer)
