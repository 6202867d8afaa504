"""The decoder-only language model."""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeworks.config.model import ModelConfig
from moeworks.errors import ConfigError, check
from moeworks.layers.init import make_linear
from moeworks.layers.inputs import MixerInputs, Slots, mixer_inputs, token_positions
from moeworks.layers.moe import MoE
from moeworks.layers.norm import make_norm
from moeworks.models.block import NOTHING, Block, BlockContext, BlockRoutings
from moeworks.models.cache import KVCache, LayerCaches
from moeworks.models.init import init_stream_
from moeworks.models.mtp import MTPLayer
from moeworks.models.origin import Origin
from moeworks.ops.backends import Backend
from moeworks.ops.head import Head
from moeworks.ops.replay import Replay
from moeworks.ops.routing import Routing

_AHEAD_RULE = "the MTP layers run over whole rows: call without cache and last_only, or without ahead"


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """The result of one forward pass."""

    hidden_BLD: Tensor
    """The stream after the last norm, which the head and MTP layers read, in the compute dtype."""
    head: Head
    """The output head, which makes logits of `hidden_BLD`."""
    routings: tuple[Routing, ...]
    """One per MoE layer, in layer order, over the B * L tokens."""
    attention_routings: tuple[Routing, ...] = ()
    """One per layer with a mixture of attention, in layer order, those of MTP layers last."""
    ahead_BLD: tuple[Tensor, ...] = ()
    """The streams of the MTP layers; the one at depth k (from 1) has L - k positions."""

    @property
    def logits_BLV(self) -> Tensor:  # noqa: N802  (a shape suffix)
        """Next-token logits in the compute dtype, computed at each access; losses do not need them."""
        return self.head.logits(self.hidden_BLD)

    @property
    def ahead_BLV(self) -> tuple[Tensor, ...]:  # noqa: N802
        """Logits [B, L - k, V] of the MTP layer at depth k: position i predicts token i + 1 + k."""
        return tuple(self.head.logits(hidden_BLD) for hidden_BLD in self.ahead_BLD)


class Decoder(nn.Module):
    """A decoder as ModelConfig describes it.

    Set `activation_checkpointing` to recompute each layer in the backward pass. `token_type` is the type of
    all tokens where a caller names none, for models with pools of experts. `origin` says which published
    checkpoint the weights came from, if any.
    """

    origin: Origin | None
    token_type: int | None

    def __init__(self, config: ModelConfig, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.origin = None
        self.token_type = None
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            Block(config, layer, backend=backend) for layer in range(config.num_layers)
        )
        self.final_norm = make_norm(config, config.d_model, config.norm.final_eps)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = make_linear(config.d_model, config.vocab_size, bias=config.lm_head_bias)
        self.mtp = nn.ModuleList(MTPLayer(config, backend=backend) for _ in range(config.num_mtp_layers))
        heads = [self.embed.weight] if self.lm_head is None else [self.embed.weight, self.lm_head.weight]
        projections = [matrix for block in self.blocks for matrix in block.residual_projections()]
        init_stream_(heads, projections, config.num_layers)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in layer order, those of the MTP layers last."""
        return cast(list[Block], [*self.layers, *(layer.block for layer in self.mtp)])

    def forward(
        self,
        tokens_BL: Tensor,
        *,
        document_ids_BL: Tensor | None = None,
        valid_BL: Tensor | None = None,
        token_types_BL: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        ahead: bool = False,
        replay: Replay | None = None,
    ) -> DecoderOutput:
        """Hidden states and the output head, which together give next-token logits at every position.

        Args:
            tokens_BL: int64 token ids.
            document_ids_BL: int64; neighbours with different ids are different documents of a packed batch.
                Attention does not cross them when attention.mask_documents is set, and each is a sequence of
                its own for the sequence-wise loss. With a cache, which remembers those of earlier positions,
                they are given in all calls or in none.
            valid_BL: bool, False for padding at the end of a row. Padding at the start of rows is the
                cache's `left_padding_B`.
            token_types_BL: int64, types of tokens (modality, language, ...), for routers with pools; by
                default all are of `token_type`.
            cache: earlier positions of the same rows; grows by L.
            last_only: logits of the last position alone, L = 1 of them.
            ahead: run the MTP layers too, over all positions, without a cache; their routings come last.
            replay: the experts that MoE layers are to choose, as `routings` of an earlier output has them:
                over these B * L tokens, with a cache too. With `ahead` it may go on with the MTP layers',
                which otherwise choose for themselves. Mixtures of attention always do.

        Raises ConfigError when the positions exceed max_seq_len, for a replay or document ids that do not
        fit, for `ahead` with a cache, and outside of training when experts depend on later tokens.
        """
        self._refuse_to_look_ahead()
        check(not (ahead and (cache is not None or last_only)), "ahead", ahead, _AHEAD_RULE)
        if document_ids_BL is not None:
            given, want = tuple(document_ids_BL.shape), tuple(tokens_BL.shape)
            check(given == want, "document_ids_BL", given, f"must have the shape of tokens_BL, {want}")
        if token_types_BL is None:
            token_types_BL = self.types_of(tokens_BL)
        inputs, context = self._context(tokens_BL, document_ids_BL, valid_BL, cache, token_types_BL)
        x_BLD = self.embed_tokens(tokens_BL)
        choices = self.config.layer_mixers or (0,) * self.config.num_layers
        routings, carry = [], NOTHING
        forced = self._replays(replay, ahead=ahead)
        for index, block in enumerate(self.layers):
            layer_inputs = inputs[choices[index]]
            if forced:
                context = replace(context, replay=forced.get(index))
            layer_cache = cache and cache.layers[index]
            x_BLD, decided, carry = self._run(block, x_BLD, layer_inputs, context, layer_cache, carry)
            routings.append(decided)
        hidden_BLD = self.final_norm(x_BLD[:, -1:] if last_only else x_BLD)
        predicted: list[Tensor] = []
        if ahead:
            predicted, decided = self._ahead(
                tokens_BL, hidden_BLD, document_ids_BL, valid_BL, token_types_BL, forced
            )
            routings += decided
        return DecoderOutput(
            _computed(hidden_BLD),
            self.head,
            tuple(r.feed_forward for r in routings if r.feed_forward is not None),
            tuple(r.attention for r in routings if r.attention is not None),
            tuple(_computed(stream_BLD) for stream_BLD in predicted),
        )

    def _ahead(
        self,
        tokens_BL: Tensor,
        hidden_BLD: Tensor,
        document_ids_BL: Tensor | None,
        valid_BL: Tensor | None,
        token_types_BL: Tensor | None,
        forced: dict[int, Replay],
    ) -> tuple[list[Tensor], list[BlockRoutings]]:
        """The MTP layers one after the other, each over one position less than the one before."""
        predicted, routings = [], []
        for depth, layer in enumerate(self.mtp, 1):
            tokens_BL = tokens_BL[:, 1:]
            shorter = slice(0, tokens_BL.shape[1])
            documents = None if document_ids_BL is None else document_ids_BL[:, shorter]
            # A position counts only as long as the token that it ends in is no padding.
            valid = None if valid_BL is None else valid_BL[:, depth:]
            types = None if token_types_BL is None else token_types_BL[:, depth:]
            inputs, context = self._context(tokens_BL, documents, valid, None, types)
            context = replace(context, replay=forced.get(self.config.num_layers + depth - 1))
            choice = 0 if self.config.layer_mixers is None else self.config.layer_mixers[self.config.mtp_like]
            hidden_BLD, decided = self._run(
                layer, hidden_BLD[:, shorter], self.embed_tokens(tokens_BL), inputs[choice], context, None
            )
            predicted.append(hidden_BLD)
            routings.append(decided)
        return predicted, routings

    def _run(self, layer: nn.Module, *arguments: Any) -> Any:
        """Result of one layer; with activation checkpointing the backward pass recomputes its activations."""
        # With a cache there is no recomputation: a second run would append to the cache again.
        cached = any(isinstance(argument, LayerCaches) for argument in arguments)
        if self.activation_checkpointing and torch.is_grad_enabled() and not cached:
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def _replays(self, replay: Replay | None, *, ahead: bool) -> dict[int, Replay]:
        """Replays by layer index; MTP layers are numbered after the others."""
        if replay is None:
            return {}
        config = self.config
        layers = list(config.moe_layers)
        if ahead and len(replay.routings) > len(layers) and config.mtp_like in layers:
            layers += range(config.num_layers, config.num_layers + config.num_mtp_layers)
        names = [f"replay of layer {index}" for index in layers]
        return dict(zip(layers, replay.for_layers(names), strict=True))

    def types_of(self, tokens_BL: Tensor) -> Tensor | None:
        """int64 [B, L]: `token_type` for all tokens; None where that is not set."""
        return None if self.token_type is None else torch.full_like(tokens_BL, self.token_type)

    def embed_tokens(self, tokens_BL: Tensor) -> Tensor:
        """[B, L, D], scaled as the config says."""
        x_BLD = self.embed(tokens_BL)
        return x_BLD if self.config.embedding_scale == 1.0 else x_BLD * self.config.embedding_scale

    @property
    def head(self) -> Head:
        """The output head; its weight is the embedding's where they are tied."""
        head = self.embed if self.lm_head is None else self.lm_head
        bias = None if self.lm_head is None else self.lm_head.bias
        return Head(head.weight, bias, self.config.logit_scale)

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """[B, L, V] from the normalised stream."""
        return self.head.logits(hidden_BLD)

    def _context(
        self,
        tokens_BL: Tensor,
        document_ids_BL: Tensor | None,
        valid_BL: Tensor | None,
        cache: KVCache | None,
        token_types_BL: Tensor | None = None,
    ) -> tuple[tuple[MixerInputs, ...], BlockContext]:
        """The inputs of each mixer of the config, and what all layers share."""
        start = cache.length if cache is not None else 0
        stop = start + tokens_BL.shape[1]
        limit = self.config.max_seq_len
        check(stop <= limit, "positions", stop, f"exceed model.max_seq_len = {limit}")
        padding_B = None if cache is None else cache.left_padding_B
        slots = Slots(
            length=tokens_BL.shape[1],
            start=start,
            document_ids_BS=document_ids_BL if cache is None else cache.extend_documents(document_ids_BL),
            left_padding_B=padding_B,
            dtype=torch.float64 if self.embed.weight.dtype == torch.float64 else torch.float32,
            device=tokens_BL.device,
        )
        if padding_B is not None:
            present_BL = torch.arange(start, stop, device=tokens_BL.device) >= padding_B[:, None]
            valid_BL = present_BL if valid_BL is None else valid_BL & present_BL
        first_keys = _first_keys(self.config, cache)
        mixers = (self.config.attention, *self.config.mixers)
        inputs = tuple(
            mixer_inputs(mixer, self.config, slots, first)
            for mixer, first in zip(mixers, first_keys, strict=True)
        )
        return inputs, BlockContext(
            valid_BL=valid_BL,
            sequence_ids_BL=_sequence_ids(tokens_BL, document_ids_BL),
            token_ids_BL=tokens_BL,
            token_types_BL=token_types_BL,
            positions_BL=token_positions(slots).expand_as(tokens_BL),
        )

    def _refuse_to_look_ahead(self) -> None:
        """Raise ConfigError, outside of training, if experts depend on the token to be predicted."""
        if self.training:
            return
        for block in self.blocks:
            ahead = None if block.moe is None else block.moe.looks_ahead()
            if ahead is not None:
                raise ConfigError(
                    f"model.router.choice = {self.config.router.choice.kind!r}, model.capacity.drop_policy ="
                    f" {self.config.capacity.drop_policy!r}: {ahead}; a loss in evaluation would know what it"
                    " predicts, and generation could not repeat it; choose a causal variant or another kind"
                )


def _first_keys(config: ModelConfig, cache: KVCache | None) -> list[int]:
    """Per mixer, the slot of the first key that its layers' caches hold."""
    firsts = [0] * (1 + len(config.mixers))
    if cache is not None:
        for choice, layer in zip(config.layer_mixers or (0,) * config.num_layers, cache.layers, strict=True):
            firsts[choice] = layer.first_key
    return firsts


def _sequence_ids(tokens_BL: Tensor, document_ids_BL: Tensor | None) -> Tensor:
    """int64 [B, L]: a number per (row, document)."""
    rows_B1 = torch.arange(tokens_BL.shape[0], device=tokens_BL.device).unsqueeze(1)
    if document_ids_BL is None:
        return rows_B1.expand_as(tokens_BL)
    first = document_ids_BL.amin()
    span = document_ids_BL.amax() - first + 1
    return rows_B1 * span + document_ids_BL - first


def _computed(hidden_BLD: Tensor) -> Tensor:
    """The hidden states in the dtype that autocast computes in."""
    device = hidden_BLD.device.type
    if not torch.is_autocast_enabled(device):
        return hidden_BLD
    return hidden_BLD.to(torch.get_autocast_dtype(device))


def moe_modules(model: nn.Module) -> list[MoE]:
    """The MoE layers of any model, in module order."""
    return [module for module in model.modules() if isinstance(module, MoE)]
