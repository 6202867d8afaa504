"""The native kernel behind layers.rope.apply_rope; its backward turns the other way."""

import ctypes

import torch
from torch import Tensor

from moeworks.ops.native.library import described
from moeworks.ops.native.use import must_library


@torch.library.custom_op("moeworks::native_rope", mutates_args=())
def rope(x_RP: Tensor, table_2LP: Tensor, repeats: int, inverse: bool) -> Tensor:
    """Rows of pairs (x_i, x_{i + P/2}), turned; row r has position (r // repeats) % L of the table."""
    y_RP = torch.empty_like(x_RP)
    x, table, y = described(x_RP), described(table_2LP), described(y_RP)
    must_library().call(
        "mw_rope",
        ctypes.byref(x),
        ctypes.byref(table),
        ctypes.c_int64(repeats),
        inverse,
        ctypes.byref(y),
        torch.get_num_threads(),
    )
    return y_RP


@rope.register_fake
def _(x_RP, table_2LP, repeats, inverse):
    return torch.empty_like(x_RP)


def _save(ctx, inputs, output):
    _, table_2LP, ctx.repeats, ctx.inverse = inputs
    ctx.save_for_backward(table_2LP)


def _differentiate(ctx, grad_RP):
    (table_2LP,) = ctx.saved_tensors
    return rope(grad_RP.contiguous(), table_2LP, ctx.repeats, not ctx.inverse), None, None, None


rope.register_autograd(_differentiate, setup_context=_save)
