"""The native kernel behind ops.routing.stable_top_k."""

import ctypes

import torch
from torch import Tensor

from moeworks.ops.native.library import described
from moeworks.ops.native.use import must_library, serving


def serves(values_TE: Tensor) -> bool:
    """Whether the kernel takes this input."""
    return serving(values_TE, dtypes=(torch.float32, torch.float64)) is not None


@torch.library.custom_op("moeworks::native_top_k", mutates_args=())
def top_k(values_TE: Tensor, k: int) -> Tensor:
    """int64 [T, K]: the ids that ops.scoring.stable_top_k returns."""
    values_TE = values_TE.contiguous()
    ids_TK = torch.empty(values_TE.shape[0], k, dtype=torch.int64)
    values, ids = described(values_TE), described(ids_TK)
    must_library().call("mw_top_k", ctypes.byref(values), ctypes.byref(ids), torch.get_num_threads())
    return ids_TK


@top_k.register_fake
def _(values_TE, k):
    return values_TE.new_empty((values_TE.shape[0], k), dtype=torch.int64)
