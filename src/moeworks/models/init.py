"""Initial weights of a whole decoder."""

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
def init_decoder_(model: nn.Module, num_layers: int) -> None:
    """Embeddings N(0, 0.02); projections into the residual stream scaled by 1/sqrt(2 * layers).

    The scaling keeps the variance of the stream independent of depth (GPT-2, section 2.3). Everything else
    keeps the scale that its layer chose.
    """
    for name, parameter in model.named_parameters():
        if name in ("embed.weight", "lm_head.weight"):
            nn.init.normal_(parameter, std=EMBEDDING_STD)
        elif name.endswith((".bias", "_bias")):
            nn.init.zeros_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
            parameter.mul_((2 * num_layers) ** -0.5)
