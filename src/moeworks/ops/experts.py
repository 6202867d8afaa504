"""The experts' arithmetic, on one of several backends that agree."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from moeworks.config.model import GATED, Activation
from moeworks.ops.activations import activate
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """The stacked weights of E experts. Gated: 2F = gate rows, then up rows; plain: F rows.

    Their dtype is that of the tokens, or float32: then backends round the matrices that they use to the
    tokens' dtype, and the gradients are float32.
    """

    up_proj: Tensor
    """[E, 2F, D] or [E, F, D]."""
    down_proj: Tensor
    """[E, D, F]."""
    up_bias: Tensor | None
    """[E, 2F] or [E, F]."""
    down_bias: Tensor | None
    """[E, D]; weighted by the routing weight like the rest of the output."""
    activation: Activation
    weights_on: Literal["output", "input"]
    recompute: bool = False
    """Compute the hidden activations again in the backward pass instead of keeping them."""
    num_without_weights: int = 0
    """The router's experts that compute nothing (identity, zero experts); their ids follow those of the E."""

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return self.down_proj.shape[0]

    def tensors(self) -> list[Tensor]:
        """The weights and biases that are present."""
        every = (self.up_proj, self.down_proj, self.up_bias, self.down_bias)
        return [tensor for tensor in every if tensor is not None]

    @property
    def gated(self) -> bool:
        """Whether up_proj holds gate and up."""
        return self.activation in GATED


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """The block that computes all shared experts; activation as the routed experts'."""

    up_proj: Tensor
    """[2F, D] or [F, D]."""
    down_proj: Tensor
    """[D, F]."""
    weights_T: Tensor | None
    """Factor of each token's output; None is 1."""


def shared_output(x_TD: Tensor, shared: SharedWeights, activation: Activation) -> Tensor:
    """y [T, D] of the shared experts."""
    up, down = shared.up_proj.to(x_TD.dtype), shared.down_proj.to(x_TD.dtype)
    y_TD = F.linear(activate(F.linear(x_TD, up), activation), down)
    return y_TD if shared.weights_T is None else y_TD * shared.weights_T.to(y_TD.dtype).unsqueeze(1)


def masked_weights(routing: Routing) -> Tensor:
    """float [T, K]: the routing weights with 0 for dropped assignments."""
    if routing.kept_TK is None:
        return routing.routing_weights_TK
    return routing.routing_weights_TK.masked_fill(~routing.kept_TK, 0.0)


def zero_computation(x_TD: Tensor, routing: Routing, num_experts: int, num_identity: int) -> Tensor:
    """y [T, D] of the zero-computation experts: identity experts add weight * token, zero experts nothing.

    Ids from `num_experts` to `num_experts + num_identity` are identity experts (LongCat-Flash, section 2.1).
    """
    ids_TK = routing.expert_ids_TK
    identity_TK = (ids_TK >= num_experts) & (ids_TK < num_experts + num_identity)
    weight_T1 = (masked_weights(routing) * identity_TK).sum(dim=1, keepdim=True)
    return x_TD * weight_T1.to(x_TD.dtype)
