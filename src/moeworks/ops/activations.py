"""Activations of feed-forward blocks, gated and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.config.model import GATED, Activation

CLAMP_ALPHA = 1.702
CLAMP_LIMIT = 7.0
"""Constants of clamped_swiglu, as published with gpt-oss."""


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """The activation of a feed-forward block.

    Args:
        hidden: [..., 2F] for a gated activation, gate in the first half and up in the second; else [..., F].
        activation: swiglu: silu(gate) * up; geglu: gelu(gate) * up (Shazeer 2020, "GLU variants"); relu2 is
            relu squared (So et al. 2021, "Primer"). gelu is the exact one; geglu_tanh has its tanh form.
            clamped_swiglu: (up + 1) * gate * sigmoid(1.702 * gate) with gate <= 7 and |up| <= 7 (gpt-oss).

    Returns:
        [..., F], the dtype of `hidden`.
    """
    if activation in GATED:
        gate, up = hidden.chunk(2, dim=-1)
        if activation == "clamped_swiglu":
            gate, up = gate.clamp(max=CLAMP_LIMIT), up.clamp(-CLAMP_LIMIT, CLAMP_LIMIT)
            return (up + 1) * (gate * torch.sigmoid(CLAMP_ALPHA * gate))
        if activation == "swiglu":
            return F.silu(gate) * up
        return F.gelu(gate, approximate="tanh" if activation == "geglu_tanh" else "none") * up
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
    if activation == "clamped_swiglu":
        return _clamped_backward(grad, gate, up, grad_hidden)
    if activation == "swiglu":
        sigmoid = torch.sigmoid(gate)
        value = gate * sigmoid
        slope = torch.addcmul(sigmoid, value, 1 - sigmoid)
    else:
        kind = "tanh" if activation == "geglu_tanh" else "none"
        value = F.gelu(gate, approximate=kind)
        slope = torch.ops.aten.gelu_backward(torch.ones_like(gate), gate, approximate=kind)
    torch.mul(grad, value, out=grad_up)
    torch.mul(grad * up, slope, out=grad_gate)
    return grad_hidden


def _clamped_backward(grad: Tensor, gate: Tensor, up: Tensor, grad_hidden: Tensor) -> Tensor:
    """The gradient of clamped_swiglu; a clamped value passes none on."""
    grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
    low, high = gate.clamp(max=CLAMP_LIMIT), up.clamp(-CLAMP_LIMIT, CLAMP_LIMIT)
    sigmoid = torch.sigmoid(CLAMP_ALPHA * low)
    slope = sigmoid * (1 + CLAMP_ALPHA * low * (1 - sigmoid))
    torch.mul(grad * (high + 1), slope * (gate <= CLAMP_LIMIT), out=grad_gate)
    torch.mul(grad, low * sigmoid * (up.abs() <= CLAMP_LIMIT), out=grad_up)
    return grad_hidden


def _slope(hidden: Tensor, activation: Activation) -> Tensor:
    """Derivative of a plain activation."""
    if activation == "relu":
        return (hidden > 0).to(hidden.dtype)
    if activation == "relu2":
        return 2 * F.relu(hidden)
    density = torch.exp(-0.5 * hidden.square()) * (0.5 / torch.pi) ** 0.5
    return 0.5 * (1 + torch.erf(hidden * 0.5**0.5)) + hidden * density
