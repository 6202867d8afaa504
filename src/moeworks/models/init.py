"""Initial weights of a whole decoder."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

EMBEDDING_STD = 0.02
_RANDOM = frozenset(
    {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_}
)


class NoInit(TorchFunctionMode):
    """Within it, random initial values are not drawn: for models that are filled from a checkpoint.

    On the meta device drawing would also import torch's compiler, which takes seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Leave the tensor as it is."""
        if func in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def init_stream_(embeddings: Iterable[Tensor], projections: Iterable[Tensor], num_layers: int) -> None:
    """Embeddings N(0, 0.02); projections into the residual stream scaled by 1/sqrt(2 * layers).

    The scaling keeps the variance of the stream independent of depth (GPT-2, section 2.3). Everything else
    keeps what its layer chose.
    """
    for embedding in embeddings:
        nn.init.normal_(embedding, std=EMBEDDING_STD)
    for projection in projections:
        projection.mul_((2 * num_layers) ** -0.5)
