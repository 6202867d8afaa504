"""Which modules may be computed from their weights, without being called."""

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What nn.Module.__call__ looks at before it calls forward and nothing else."""


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what `kind.forward` does with its parameters, and nothing beside it.

    False for subclasses (adapters, quantised and parametrised layers), for a module with a forward of its
    own, and where hooks wait for the call: the module's, or those of all modules.
    """
    hooked = any(getattr(module, name) or getattr(torch_module, f"_global{name}") for name in _HOOKS)
    return type(module) is kind and "forward" not in vars(module) and not hooked
