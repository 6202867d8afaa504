"""The native kernel behind ops.cross_entropy: loss and gradient of a block of logits in one pass."""

import ctypes

import torch
from torch import Tensor

from moeworks.ops.native.library import Library, described


def cross_entropy_(
    lib: Library, logits_TV: Tensor, targets_T: Tensor, scale_T: Tensor, losses_T: Tensor, gradient: bool
) -> None:
    """Write each row's scaled loss and, with `gradient`, its gradient over the logits; float32, contiguous.

    Raises ConfigError for a target outside the vocabulary.
    """
    structs = [described(t) for t in (logits_TV, targets_T, scale_T, losses_T)]
    lib.call("mw_cross_entropy", *(ctypes.byref(s) for s in structs), gradient, torch.get_num_threads())
