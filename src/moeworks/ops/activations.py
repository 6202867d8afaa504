"""Activations of feed-forward blocks, gated and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.model import GATED, Activation


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """The activation of a feed-forward block.

    Args:
        hidden: [..., 2F] for a gated activation, gate in the first half and up in the second; else [..., F].
        activation: swiglu: silu(gate) * up; geglu: gelu(gate) * up (Shazeer 2020, "GLU variants"); relu2 is
            relu squared (So et al. 2021, "Primer"). gelu is the exact one.

    Returns:
        [..., F], the dtype of `hidden`.
    """
    if activation in GATED:
        gate, up = hidden.chunk(2, dim=-1)
        return (F.silu(gate) if activation == "swiglu" else F.gelu(gate)) * up
    if activation == "gelu":
        return F.gelu(hidden)
    positive = F.relu(hidden)
    return positive.square() if activation == "relu2" else positive


def activate_backward(grad: Tensor, hidden: Tensor, activation: Activation) -> Tensor:
    """Gradient of `activate` with respect to `hidden`, given the gradient [..., F] of its result."""
    if activation not in GATED:
        return grad * _slope(hidden, activation)
    gate, up = hidden.chunk(2, dim=-1)
    grad_hidden = torch.empty_like(hidden)
    grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
    if activation == "swiglu":
        sigmoid = torch.sigmoid(gate)
        value = gate * sigmoid
        slope = torch.addcmul(sigmoid, value, 1 - sigmoid)
    else:
        value, slope = F.gelu(gate), _slope(gate, "gelu")
    torch.mul(grad, value, out=grad_up)
    torch.mul(grad * up, slope, out=grad_gate)
    return grad_hidden


def _slope(hidden: Tensor, activation: Activation) -> Tensor:
    """Derivative of a plain activation."""
    if activation == "relu":
        return (hidden > 0).to(hidden.dtype)
    if activation == "relu2":
        return 2 * F.relu(hidden)
    density = torch.exp(-0.5 * hidden.square()) * (0.5 / torch.pi) ** 0.5
    return 0.5 * (1 + torch.erf(hidden * 0.5**0.5)) + hidden * density
