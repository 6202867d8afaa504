"""The Mixture-of-Experts layer."""

import math

import torch
from torch import Tensor, nn

from moeworks.config.model import MoEConfig
from moeworks.layers.experts import Experts
from moeworks.layers.mlp import MLP
from moeworks.layers.router import Router
from moeworks.ops.backends import Backend
from moeworks.ops.dispatch import apply_capacity
from moeworks.ops.experts import SharedWeights, zero_computation
from moeworks.ops.routing import Routing


class MoE(nn.Module):
    """A drop-in replacement for a transformer's feed-forward block that also returns its Routing.

    >>> moe = MoE(MoEConfig(d_model=8, d_expert=16, num_experts=4, top_k=2))
    >>> y, routing = moe(torch.randn(2, 5, 8))
    >>> y.shape, routing.expert_ids_TK.shape
    (torch.Size([2, 5, 8]), torch.Size([10, 2]))

    Balance losses and bias updates are functions of the Routing (`moeworks.balance_losses`); the layer keeps
    no counts, so activation checkpointing and evaluation cannot disturb any.
    """

    def __init__(self, config: MoEConfig, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.router = Router(config, config.d_model)
        self.experts = Experts(config, backend)
        self.shared = self.shared_token_gate = None
        if config.num_shared_experts:
            self.shared = MLP(config.d_model, config.shared_width, config.activation)
            if config.shared_token_gate:
                self.shared_token_gate = nn.Linear(config.d_model, 1, bias=False)

    def forward(
        self, x: Tensor, *, valid: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Mix each token's experts.

        Args:
            x: [..., D], any leading dimensions, T tokens in all.
            valid: bool [...], False for padding: such tokens reach no routed expert, take no capacity and
                count in no loss.
            sequence_ids: int64 [...], the sequence (packed document) of each token, for the sequence-wise
                loss. None: each [L, D] slice of x is a sequence.

        Returns:
            y [..., D] and the Routing of the T tokens in row-major order.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        routing = self.router(
            x_TD,
            valid_T=None if valid is None else valid.reshape(-1),
            sequence_ids_T=_rows(x) if sequence_ids is None else sequence_ids.reshape(-1),
        )
        routing = apply_capacity(routing, self.config, training=self.training)
        shared = self._shared_weights(x_TD)
        y_TD = self.experts(x_TD, routing, shared)
        config = self.config
        if config.num_identity_experts:
            # In the experts' dtype: under autocast x may still be float32.
            x_in = x_TD.to(y_TD.dtype)
            y_TD = y_TD + zero_computation(x_in, routing, config.num_experts, config.num_identity_experts)
        if self.shared is not None and shared is None:
            y_TD = y_TD + self._shared(x_TD)
        return y_TD.view(x.shape), routing

    def explain_backend(self, x: Tensor) -> str:
        """Which expert backend would serve this input, and why."""
        return self.experts.explain_backend(x.reshape(-1, x.shape[-1]))

    def _shared_weights(self, x_TD: Tensor) -> SharedWeights | None:
        """The shared experts, for a backend to compute along with the routed ones; None where it cannot."""
        plain = None if self.shared is None else self.shared.plain_weights()
        return None if plain is None else SharedWeights(*plain, self._shared_token_weights(x_TD))

    def _shared(self, x_TD: Tensor) -> Tensor:
        assert self.shared is not None
        y_TD, weights_T = self.shared(x_TD), self._shared_token_weights(x_TD)
        return y_TD if weights_T is None else y_TD * weights_T.unsqueeze(1)

    def _shared_token_weights(self, x_TD: Tensor) -> Tensor | None:
        """[T], what multiplies the shared experts' output; None is 1."""
        if self.shared_token_gate is None:
            return None
        return torch.sigmoid(self.shared_token_gate(x_TD)).squeeze(1)


def _rows(x: Tensor) -> Tensor | None:
    """int64 [T]: the number of the [L, D] slice that each token comes from; None where there is only one."""
    if x.dim() < 3:
        return None
    return torch.arange(math.prod(x.shape[:-2]), device=x.device).repeat_interleave(x.shape[-2])
