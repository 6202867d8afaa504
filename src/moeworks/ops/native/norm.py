"""The native kernel behind ops.norm.rms_norm, forward and backward."""

import ctypes

import torch
from torch import Tensor

from moeworks.ops.native.library import described
from moeworks.ops.native.use import must_library


@torch.library.custom_op("moeworks::native_rms_norm", mutates_args=())
def rms_norm(x_RD: Tensor, weight_D: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """y [R, D] and what the backward needs: [R], the inverse root of each row's mean square."""
    y_RD, r_R = torch.empty_like(x_RD), x_RD.new_empty(x_RD.shape[0])
    x, weight, y, r = described(x_RD), described(weight_D), described(y_RD), described(r_R)
    must_library().call(
        "mw_rms_norm",
        ctypes.byref(x),
        ctypes.byref(weight),
        ctypes.c_double(eps),
        ctypes.byref(y),
        ctypes.byref(r),
        torch.get_num_threads(),
    )
    return y_RD, r_R


@rms_norm.register_fake
def _(x_RD, weight_D, eps):
    return torch.empty_like(x_RD), x_RD.new_empty(x_RD.shape[0])


@torch.library.custom_op("moeworks::native_rms_norm_backward", mutates_args=())
def _backward(grad_RD: Tensor, x_RD: Tensor, weight_D: Tensor | None, r_R: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight (empty without one)."""
    grad_x, grad_weight = torch.empty_like(x_RD), x_RD.new_empty(0 if weight_D is None else x_RD.shape[1])
    tensors = (grad_RD, x_RD, weight_D, r_R, grad_x, None if weight_D is None else grad_weight)
    structs = [described(t) for t in tensors]
    must_library().call("mw_rms_norm_backward", *(ctypes.byref(s) for s in structs), torch.get_num_threads())
    return grad_x, grad_weight


@_backward.register_fake
def _(grad_RD, x_RD, weight_D, r_R):
    return torch.empty_like(x_RD), x_RD.new_empty(0 if weight_D is None else x_RD.shape[1])


def _save(ctx, inputs, output):
    x_RD, weight_D, _ = inputs
    ctx.save_for_backward(x_RD, weight_D, output[1])


def _differentiate(ctx, grad_RD, _):
    x_RD, weight_D, r_R = ctx.saved_tensors
    grad_x, grad_weight = _backward(grad_RD.contiguous(), x_RD, weight_D, r_R)
    return grad_x, None if weight_D is None else grad_weight, None


rms_norm.register_autograd(_differentiate, setup_context=_save)
