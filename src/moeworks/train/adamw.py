"""AdamW with one native pass over all tensors, and the gradients' norm and scale."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from moeworks.ops.native.adamw import AdamWItem, adamw_step, total_norm
from moeworks.ops.native.library import Library
from moeworks.ops.native.use import serving


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov and Hutter 2019), state and results alike up to rounding.

    Where the native library serves all of a step's tensors (float32, contiguous, on the CPU), one pass over
    them updates parameters and moments; elsewhere it is torch's. Groups may set lr, betas, eps and
    weight_decay.
    """

    gradient_scale: Tensor | None = None
    """Factor of the gradients in the next steps, which folds gradient clipping into the update."""

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters, with the state that torch makes in its first step: a checkpoint can be loaded."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            device = param.device if group["fused"] else torch.device("cpu")
            self.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(param, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(param, requires_grad=False),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        named = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        states = [self.state[param] for _, param in named]
        moments = [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")]
        params = [param for _, param in named]
        lib = _library_for([*params, *(p.grad for p in params if p.grad is not None), *moments])
        if lib is None:
            scale_gradients_(params, self.gradient_scale)
            super().step()
            return loss
        if states:
            torch._foreach_add_([state["step"] for state in states], 1)
        scale = 1.0 if self.gradient_scale is None else float(self.gradient_scale)
        adamw_step(lib, [_item(*entry, self.state[entry[1]]) for entry in named], scale)
        return loss


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, a scalar tensor.

    One norm over all parameters, experts included (pitfall 27); parameters without a gradient count as 0.
    Nothing waits for a GPU here: reading the result does.
    """
    gradients = [param.grad for param in parameters if param.grad is not None]
    lib = _library_for(gradients) if gradients else None
    return nn.utils.get_total_norm(gradients) if lib is None else total_norm(lib, gradients)


def clip_scale(norm: Tensor, max_norm: float) -> Tensor | None:
    """Factor that brings gradients of that norm down to at most `max_norm`; None for no limit (0).

    A norm that is not finite gives a factor that is not finite, or 0: check the norm before the step.
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm > 0 else None


def scale_gradients_(parameters: Iterable[Tensor], scale: Tensor | None) -> None:
    """Multiply the gradients in place; None is 1."""
    gradients = [param.grad for param in parameters if param.grad is not None]
    if scale is not None and gradients:
        torch._foreach_mul_(gradients, scale)


def _library_for(tensors: Sequence[Tensor]) -> Library | None:
    """The library if it serves all of the parameters (float32, contiguous, on the CPU), else None."""
    return serving(*tensors) if all(t.is_contiguous() for t in tensors) else None


def _item(group: dict, param: Tensor, state: dict) -> AdamWItem:
    assert param.grad is not None
    beta1, beta2 = group["betas"]
    return AdamWItem(
        param=param,
        grad=param.grad,
        exp_avg=state["exp_avg"],
        exp_avg_sq=state["exp_avg_sq"],
        lr=float(group["lr"]),
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        step=float(state["step"]),
    )
