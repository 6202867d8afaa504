"""The experts' arithmetic, on one of several backends that agree."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from moeworks.config.model import GATED, Activation
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """The stacked weights of E experts. Gated: 2F = gate rows, then up rows; plain: F rows."""

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

    @property
    def num_experts(self) -> int:
        """E."""
        return self.down_proj.shape[0]

    @property
    def gated(self) -> bool:
        """Whether up_proj holds gate and up."""
        return self.activation in GATED


def masked_weights(routing: Routing) -> Tensor:
    """float [T, K]: the routing weights with 0 for dropped assignments."""
    if routing.kept_TK is None:
        return routing.routing_weights_TK
    return routing.routing_weights_TK.masked_fill(~routing.kept_TK, 0.0)


def zero_computation(x_TD: Tensor, routing: Routing, num_experts: int, num_identity: int) -> Tensor:
    """What identity experts add: the token times the weights it gave them. Zero experts add nothing.

    Ids from `num_experts` to `num_experts + num_identity` are identity experts (LongCat-Flash, section 2.1).
    """
    ids_TK = routing.expert_ids_TK
    identity_TK = (ids_TK >= num_experts) & (ids_TK < num_experts + num_identity)
    weight_T1 = (masked_weights(routing) * identity_TK).sum(dim=1, keepdim=True)
    return x_TD * weight_T1.to(x_TD.dtype)
