"""Initial weights.

A layer chooses how its own parameters start, and says in `residual_projections` which of them write into the
residual stream: how many layers share that stream is known to the model alone (models/init.py).
"""

from torch import Tensor, nn


def init_matrix_(weight: Tensor) -> Tensor:
    """Uniform in +-1/sqrt(fan_in), in place, as nn.Linear does; fan_in is the last dimension.

    A stack [E, out, in] is E independent matrices, each scaled by its own fan_in, so an expert starts as a
    dense block of its width would, and no two experts start alike.
    """
    bound = weight.shape[-1] ** -0.5
    return nn.init.uniform_(weight, -bound, bound)


def make_linear(in_features: int, out_features: int, *, bias: bool = False) -> nn.Linear:
    """A linear map with the weights of nn.Linear and a bias that starts at 0."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
