"""Multi-token prediction (DeepSeek-V3, section 2.2)."""

import torch
from torch import Tensor, nn

from moeworks.config.model import ModelConfig
from moeworks.layers.init import make_linear
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.norm import make_norm
from moeworks.models.block import Block, BlockContext, BlockRoutings
from moeworks.ops.backends import Backend


class MTPLayer(nn.Module):
    """One more layer, which predicts one token further ahead.

    It joins the normalised stream at a position with the embedding of the next token, [embedding, stream] in
    the order of the published weights. Embedding and output projection are the model's own.
    """

    def __init__(self, config: ModelConfig, *, backend: Backend) -> None:
        super().__init__()
        self.embed_norm = make_norm(config, config.d_model)
        self.hidden_norm = make_norm(config, config.d_model)
        self.proj = make_linear(2 * config.d_model, config.d_model)
        self.block = Block(config, config.mtp_like, backend=backend)
        self.final_norm = make_norm(config, config.d_model, config.norm.final_eps)

    def forward(
        self,
        hidden_BLD: Tensor,
        next_embedded_BLD: Tensor,
        inputs: MixerInputs,
        context: BlockContext,
        cache: object = None,
    ) -> tuple[Tensor, BlockRoutings]:
        """The normalised stream for the token after the next, and the layer's routing decisions."""
        joined = torch.cat([self.embed_norm(next_embedded_BLD), self.hidden_norm(hidden_BLD)], dim=-1)
        x_BLD, routings, _ = self.block(self.proj(joined), inputs, context, cache)
        return self.final_norm(x_BLD), routings
