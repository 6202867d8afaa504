"""The choice of the native library for given tensors, and their layout for its row-wise functions."""

import torch
from torch import Tensor, nn

from moeworks.ops.native.library import Library, library


def serving(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Library | None:
    """The library if it is there and all tensors are plain ones on the CPU, of one of `dtypes`.

    Not in a compiled graph: a compiler fuses torch's row-wise functions itself.
    """
    if torch.compiler.is_compiling() or not are_plain(*tensors):
        return None
    for tensor in tensors:
        if tensor is not None and (tensor.device.type != "cpu" or tensor.dtype not in dtypes):
            return None
    found = library()
    return None if isinstance(found, str) else found


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether the elements of all tensors lie where `data_ptr` says.

    Those of a subclass (a shard, a quantised or a fake tensor) may lie elsewhere, or nowhere.
    """
    return all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


def must_library() -> Library:
    """The library, for operators that are only reached when it is loaded."""
    found = library()
    assert not isinstance(found, str), found
    return found


def as_rows(x: Tensor) -> tuple[Tensor, int]:
    """The vectors along the last dimension as rows [R, P] in memory order, and the repeats of a position.

    Row r stands at position (r // repeats) % L, L the last dimension but one. Heads that are a view
    [B, H, L, P] of memory [B, L, H, P] stay where they are.
    """
    if _heads_are_inner(x):
        return x.transpose(1, 2).reshape(-1, x.shape[-1]), x.shape[1]
    return x.reshape(-1, x.shape[-1]).contiguous(), 1


def from_rows(rows: Tensor, x: Tensor) -> Tensor:
    """Rows made from those of `as_rows`, in the shape of x and in its order of memory."""
    if _heads_are_inner(x):
        batch, heads, length, width = x.shape
        return rows.view(batch, length, heads, width).transpose(1, 2)
    return rows.view(x.shape)


def _heads_are_inner(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.transpose(1, 2).is_contiguous()
