"""Initial weights."""

from torch import Tensor, nn


def init_matrix_(weight: Tensor) -> Tensor:
    """Uniform in +-1/sqrt(fan_in), in place, as nn.Linear does; fan_in is the last dimension.

    A stack [E, out, in] is E independent matrices, each scaled by its own fan_in, so an expert starts as a
    dense block of its width would, and no two experts start alike.
    """
    bound = weight.shape[-1] ** -0.5
    return nn.init.uniform_(weight, -bound, bound)
