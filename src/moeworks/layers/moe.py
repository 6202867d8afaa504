"""The Mixture-of-Experts layer."""

import math

import torch
from torch import Tensor, nn

from moeworks.config.model import MoEConfig
from moeworks.errors import check
from moeworks.layers.experts import Experts
from moeworks.layers.init import make_linear
from moeworks.layers.mlp import MLP
from moeworks.layers.replay import replayed
from moeworks.layers.routers import RouterFunction, build_router, own_router
from moeworks.ops.backends import Backend
from moeworks.ops.dispatch import apply_capacity
from moeworks.ops.experts import SharedWeights, zero_computation
from moeworks.ops.replay import Replay
from moeworks.ops.routing import Routing, RoutingContext


class MoE(nn.Module):
    """A drop-in replacement for a transformer's feed-forward block that also returns its Routing.

    >>> moe = MoE(MoEConfig(d_model=8, d_expert=16, num_experts=4, top_k=2))
    >>> y, routing = moe(torch.randn(2, 5, 8))
    >>> y.shape, routing.expert_ids_TK.shape
    (torch.Size([2, 5, 8]), torch.Size([10, 2]))

    Balance losses and bias updates are functions of the Routing (`moeworks.balance_losses`); the layer keeps
    no counts, so activation checkpointing and evaluation cannot disturb any.

    `router` is one of your own: an nn.Module or a function of (x_TD, RoutingContext) that returns a Routing
    (docs/routers.md); without it config.choice says which.
    """

    def __init__(
        self, config: MoEConfig, *, backend: Backend = "auto", router: RouterFunction | None = None
    ) -> None:
        super().__init__()
        self.config = config
        if router is None:
            self.router = build_router(config, config.d_model)
        else:
            self.router = own_router(router, config)
        self.experts = Experts(config, backend)
        self.shared = self.shared_token_gate = None
        if config.num_shared_experts:
            self.shared = MLP(config.d_model, config.shared_width, config.activation)
            if config.shared_token_gate:
                self.shared_token_gate = make_linear(config.d_model, 1)

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream: those of the routed and of the shared experts."""
        shared = () if self.shared is None else self.shared.residual_projections()
        return (*self.experts.residual_projections(), *shared)

    def forward(
        self,
        x: Tensor,
        *,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_ids: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
        replay: Replay | None = None,
    ) -> tuple[Tensor, Routing]:
        """Mix each token's experts.

        Args:
            x: [..., D], any leading dimensions, T tokens in all.
            valid: bool [...], False for padding: such tokens reach no routed expert, take no capacity, count
                in no loss, and may hold anything, NaN included.
            sequence_ids: int64 [...], the sequence (packed document) of each token, for the sequence-wise
                loss. None: each [L, D] slice of x is a sequence.
            token_ids, token_types: int64 [...], id and type of each token, for routers that need them.
            positions: int64 [...], in the token's sequence. None: along the last but one dimension of x.
            replay: the experts to force for these tokens in place of the router's choice, for a single layer.

        Returns:
            y [..., D] and the Routing of the T tokens in row-major order.

        Raises ConfigError for tensors of another shape, a replay that does not fit, and missing token_ids,
        token_types or positions that the router needs.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        context = RoutingContext(
            valid_T=_per_token(valid, x, "valid"),
            sequence_ids_T=_rows(x) if sequence_ids is None else _per_token(sequence_ids, x, "sequence_ids"),
            token_ids_T=_per_token(token_ids, x, "token_ids"),
            token_types_T=_per_token(token_types, x, "token_types"),
            positions_T=_places(x) if positions is None else _per_token(positions, x, "positions"),
        )
        if context.valid_T is not None:
            # Padding may hold infinity or NaN, and 0 times these is NaN, also in the gradients of weights.
            x_TD = x_TD.masked_fill(~context.valid_T.unsqueeze(1), 0.0)
        routing = self.router(x_TD, context)
        if replay is None:
            routing = apply_capacity(routing, self.config, training=self.training)
        else:
            (own,) = replay.for_layers(replay.names or ("replay",))
            routing = replayed(self.router, routing, own, self.config, training=self.training)
        shared = self._shared_weights(x_TD)
        y_TD = self.experts(x_TD, routing, shared)
        config = self.config
        if config.num_identity_experts:
            # Cast to the experts' dtype: under autocast x may still be float32.
            x_in = x_TD.to(y_TD.dtype)
            y_TD = y_TD + zero_computation(x_in, routing, config.num_experts, config.num_identity_experts)
        if self.shared is not None and shared is None:
            y_TD = y_TD + self._shared(x_TD)
        return y_TD.view(x.shape), routing

    def looks_ahead(self) -> str | None:
        """Why, in the present mode, a token's output depends on later tokens; None where it does not."""
        return self.router.looks_ahead() or self.config.looks_ahead(training=self.training)

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
        """[T]: the factor of the shared experts' output; None is 1."""
        if self.shared_token_gate is None:
            return None
        return torch.sigmoid(self.shared_token_gate(x_TD)).squeeze(1)


def _rows(x: Tensor) -> Tensor | None:
    """int64 [T]: the number of the [L, D] slice that each token comes from; None where there is only one."""
    if x.dim() < 3:
        return None
    return torch.arange(math.prod(x.shape[:-2]), device=x.device).repeat_interleave(x.shape[-2])


def _places(x: Tensor) -> Tensor:
    """int64 [T]: the place of each token in its [L, D] slice."""
    length = x.shape[-2] if x.dim() > 1 else 1
    return torch.arange(length, device=x.device).expand(x.shape[:-1] or (1,)).reshape(-1)


def _per_token(values: Tensor | None, x: Tensor, name: str) -> Tensor | None:
    """[T] of values with the leading dimensions of x."""
    if values is None:
        return None
    shape, want = tuple(values.shape), tuple(x.shape[:-1])
    check(shape == want, name, shape, f"must have the leading dimensions of x, {want}")
    return values.reshape(-1)
