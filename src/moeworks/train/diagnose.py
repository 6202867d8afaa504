"""Where a NaN or an infinity came from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def first_nonfinite_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the first submodule whose output is not finite while `run` calls the model, or None."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_nonfinite_parameter(model: nn.Module) -> str | None:
    """The first parameter that holds a NaN or an infinity, or None."""
    return next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
