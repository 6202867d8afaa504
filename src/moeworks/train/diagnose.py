"""Where a NaN or an infinity came from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moeworks.ops.routing import Routing


def first_nonfinite_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the first submodule whose output is not finite while `run` calls the model, or None."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(output)):
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


def _tensors(output: object) -> tuple[Tensor, ...]:
    """What a leaf module returns: a tensor, or a router's Routing. Containers return what these made."""
    if isinstance(output, Routing):
        return output.tensors()
    return (output,) if isinstance(output, Tensor) else ()
