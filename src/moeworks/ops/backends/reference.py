"""The specification: a loop over experts, nothing else. Slow, and right in every dtype."""

import torch.nn.functional as F
from torch import Tensor

from moeworks.ops.activations import activate
from moeworks.ops.experts import ExpertWeights, masked_weights
from moeworks.ops.routing import Routing


def refusal(x_TD: Tensor, experts: ExpertWeights) -> str | None:
    """None: the reference serves every input."""
    return None


def run(x_TD: Tensor, routing: Routing, experts: ExpertWeights) -> Tensor:
    """y [T, D]: each expert in turn works on its tokens and adds the weighted result to them."""
    weights_TK = masked_weights(routing).to(x_TD.dtype)
    y_TD = x_TD.new_zeros(x_TD.shape)
    for expert in range(experts.num_experts):
        chosen_TK = routing.expert_ids_TK == expert
        if routing.kept_TK is not None:
            chosen_TK = chosen_TK & routing.kept_TK
        token, slot = chosen_TK.nonzero(as_tuple=True)
        weight = weights_TK[token, slot].unsqueeze(1)
        x = x_TD[token]
        if experts.weights_on == "input":
            x = x * weight
        hidden = _linear(x, experts.up_proj[expert], experts.up_bias, expert)
        act = activate(hidden, experts.activation)
        out = _linear(act, experts.down_proj[expert], experts.down_bias, expert)
        y_TD = y_TD.index_add(0, token, out if experts.weights_on == "input" else out * weight)
    return y_TD


def _linear(x: Tensor, weight: Tensor, bias_E: Tensor | None, expert: int) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias_E is None else bias_E[expert].to(x.dtype))
