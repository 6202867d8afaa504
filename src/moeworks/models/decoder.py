"""The decoder-only language model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moeworks.config.model import GQAConfig, ModelConfig
from moeworks.errors import check
from moeworks.layers.attention import GQAttention, LayerCache
from moeworks.layers.mlp import MLP
from moeworks.layers.moe import MoE
from moeworks.layers.norm import RMSNorm
from moeworks.layers.rope import rope_table
from moeworks.models.cache import KVCache
from moeworks.models.init import init_decoder_
from moeworks.ops.attention import DocumentMask, document_mask
from moeworks.ops.backends import Backend
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """What one forward pass returns."""

    logits_BLV: Tensor
    """Next-token logits, in the compute dtype."""
    routings: tuple[Routing, ...]
    """One per MoE layer, in layer order, over the B * L tokens."""


@dataclass(frozen=True, eq=False)
class _Context:
    """What every block needs beside its input."""

    rope_2LP: Tensor
    documents: DocumentMask | None
    valid_BL: Tensor | None
    sequence_ids_BL: Tensor | None


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, moe: bool, backend: Backend) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = GQAttention(config)
        self.mlp_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        mlp = config.mlp
        self.mlp = (
            MoE(config.moe, backend=backend)
            if moe
            else MLP(config.d_model, mlp.d_ff, mlp.mlp_activation, bias=mlp.mlp_bias)
        )

    def forward(
        self, x_BLD: Tensor, context: _Context, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """The stream [B, L, D] after this layer, and the Routing if the layer is a MoE."""
        attended = self.attention(self.attention_norm(x_BLD), context.rope_2LP, context.documents, cache)
        x_BLD = x_BLD + attended
        normed = self.mlp_norm(x_BLD)
        if not isinstance(self.mlp, MoE):
            return x_BLD + self.mlp(normed), None
        y_BLD, routing = self.mlp(normed, valid=context.valid_BL, sequence_ids=context.sequence_ids_BL)
        return x_BLD + y_BLD, routing


class Decoder(nn.Module):
    """A decoder as ModelConfig describes it.

    Set `activation_checkpointing` to recompute each layer in the backward pass.
    """

    rope: Tensor

    def __init__(self, config: ModelConfig, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        moe_layers = set(config.moe_layers)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            Block(config, moe=i in moe_layers, backend=backend) for i in range(config.num_layers)
        )
        self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        assert isinstance(config.attention, GQAConfig)
        table = rope_table(config.max_seq_len, config.head_dim, config.attention.rope_theta)
        self.register_buffer("rope", table, persistent=False)
        init_decoder_(self, config.num_layers)

    def forward(
        self,
        tokens_BL: Tensor,
        *,
        document_ids_BL: Tensor | None = None,
        valid_BL: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> DecoderOutput:
        """Logits of the next token at every position.

        Args:
            tokens_BL: int64 token ids.
            document_ids_BL: int64; neighbours with different ids are different documents of a packed batch.
                Attention does not cross them when attention.mask_documents is set, and each is a sequence of
                its own for the sequence-wise loss.
            valid_BL: bool, False for padding at the end of a row.
            cache: earlier positions of the same rows; grows by L.

        Raises ConfigError when the positions exceed max_seq_len.
        """
        context = self._context(tokens_BL, document_ids_BL, valid_BL, cache)
        x_BLD = self.embed(tokens_BL)
        routings = []
        for index, block in enumerate(self.layers):
            if self.activation_checkpointing and torch.is_grad_enabled() and cache is None:
                x_BLD, routing = checkpoint(block, x_BLD, context, use_reentrant=False)
            else:
                x_BLD, routing = block(x_BLD, context, cache and cache.layers[index])
            if routing is not None:
                routings.append(routing)
        head = self.embed if self.lm_head is None else self.lm_head
        return DecoderOutput(F.linear(self.final_norm(x_BLD), head.weight), tuple(routings))

    def _context(
        self,
        tokens_BL: Tensor,
        document_ids_BL: Tensor | None,
        valid_BL: Tensor | None,
        cache: KVCache | None,
    ) -> _Context:
        start = cache.length if cache is not None else 0
        stop = start + tokens_BL.shape[1]
        limit = self.config.max_seq_len
        check(stop <= limit, "positions", stop, f"exceed model.max_seq_len = {limit}")
        mask_documents = self.config.attention.mask_documents and document_ids_BL is not None
        return _Context(
            rope_2LP=self.rope[:, start:stop],
            documents=document_mask(document_ids_BL) if mask_documents else None,
            valid_BL=valid_BL,
            sequence_ids_BL=_sequence_ids(tokens_BL, document_ids_BL),
        )


def _sequence_ids(tokens_BL: Tensor, document_ids_BL: Tensor | None) -> Tensor:
    """int64 [B, L]: a number per (row, document)."""
    rows_B1 = torch.arange(tokens_BL.shape[0], device=tokens_BL.device).unsqueeze(1)
    if document_ids_BL is None:
        return rows_B1.expand_as(tokens_BL)
    first = document_ids_BL.amin()
    span = document_ids_BL.amax() - first + 1
    return rows_B1 * span + document_ids_BL - first


def moe_modules(model: nn.Module) -> list[MoE]:
    """The MoE layers of any model, in module order."""
    return [module for module in model.modules() if isinstance(module, MoE)]
