"""The native optimizer pass, and the norm that comes before it: all tensors in one call each."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.ops.native.library import Library, described
from moeworks.ops.native.structs import ADAMW_NUMBERS, ADAMW_TENSORS, AdamWItemStruct, TensorStruct

_WRITTEN = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class AdamWItem:
    """One parameter of a step: float32, contiguous, on the CPU; `step` counts from 1."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float


def adamw_step(lib: Library, items: Sequence[AdamWItem], gradient_scale: float = 1.0) -> None:
    """Update parameters and moments in place as torch.optim.AdamW does, with gradients times the scale."""
    array = (AdamWItemStruct * len(items))(*(_described(item) for item in items))
    lib.call(
        "mw_adamw",
        array,
        ctypes.c_int64(len(items)),
        ctypes.c_double(gradient_scale),
        torch.get_num_threads(),
    )
    # Bump the version counters: autograd and caches of derived values must see the change.
    torch.autograd.graph.increment_version([getattr(item, name) for item in items for name in _WRITTEN])


def total_norm(lib: Library, tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all elements of all tensors (float32, contiguous), a float32 scalar summed in float64."""
    array = (TensorStruct * len(tensors))(*(_flat(t) for t in tensors))
    total = ctypes.c_double()
    lib.call(
        "mw_sum_of_squares",
        array,
        ctypes.c_int64(len(tensors)),
        ctypes.byref(total),
        torch.get_num_threads(),
    )
    return torch.tensor(math.sqrt(total.value) if total.value >= 0 else math.nan, dtype=torch.float32)


def _described(item: AdamWItem) -> AdamWItemStruct:
    tensors = (_flat(getattr(item, name)) for name in ADAMW_TENSORS)
    return AdamWItemStruct(*tensors, *(getattr(item, name) for name in ADAMW_NUMBERS))


def _flat(tensor: Tensor) -> TensorStruct:
    """Flat view of all elements; requires a contiguous tensor."""
    return described(tensor.detach().view(-1))
