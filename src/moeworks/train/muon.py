"""Muon for single matrices and for stacks of matrices.

torch.optim.Muon takes 2-D parameters only; the experts' weights are 3-D stacks, and every expert's matrix
must be orthogonalised on its own. On a 2-D parameter both agree.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.train.adamw import scale_gradients_

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration (Jordan 2024,
https://kellerjordan.github.io/posts/muon)."""
RMS_OF_ADAMW = 0.2
"""The usual RMS of an AdamW update (Liu et al. 2025, arXiv 2502.16982, section 2.2)."""
SMALLEST_NORM = 1e-7
"""A matrix of smaller Frobenius norm is not scaled up; one of zeros stays 0 (an expert without tokens)."""
CPU_BATCH = 2**20
"""Elements of matrices that go through the iteration together: small enough for the processor's cache."""
GPU_BATCH = 2**26


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix, with decoupled weight decay.

    For a gradient G, momentum B and matrix W of R rows and C columns:

        B <- m B + (1 - m) G
        W <- (1 - lr * weight_decay) W - lr * 0.2 sqrt(max(R, C)) * NewtonSchulz(m B + (1 - m) G)

    The factor gives the update the RMS 0.2 of AdamW's (Liu et al. 2025, equation 4), so AdamW's learning
    rates and decay carry over. Parameters are [R, C] or stacks [E, R, C]. A parameter group may set
    `splits` = n: each matrix is n matrices below each other (gate_up_proj: 2). Parameters without a gradient
    are skipped.
    """

    gradient_scale: Tensor | None = None
    """Factor of the gradients in the next steps."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        *,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "splits": 1,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters. Raises ConfigError unless they are 2-D or 3-D with rows that divide by `splits`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            shape, splits = tuple(param.shape), group["splits"]
            check(len(shape) in (2, 3), "muon: parameter shape", shape, "must have 2 or 3 dimensions")
            check(shape[-2] % splits == 0, "muon: parameter shape", shape, f"rows must divide by {splits}")
            self.state[param]["momentum_buffer"] = torch.zeros_like(param)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters in place; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            scale_gradients_(with_gradient, self.gradient_scale)
            for batch in _batches(with_gradient, group["splits"]):
                self._update(batch, group)
        return loss

    def _update(self, params: list[Tensor], group: dict) -> None:
        """Update parameters whose matrices have one shape, in one batch."""
        rows, columns = _matrix_shape(params[0], group["splits"])
        gradients = [p.grad for p in params if p.grad is not None]
        directions = [
            self._direction(param, gradient, group["momentum"]).reshape(-1, rows, columns)
            for param, gradient in zip(params, gradients, strict=True)
        ]
        counts = [len(d) for d in directions]
        matrices = directions[0] if len(directions) == 1 else torch.cat(directions)
        for part in matrices.split(max(1, _batch_limit(matrices) // (rows * columns))):
            part.copy_(orthogonalize(part, group["newton_schulz_steps"]))
        step_size = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(rows, columns))
        for param, update in zip(params, matrices.split(counts), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update.reshape(param.shape), alpha=-step_size)

    def _direction(self, param: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Advance the momentum; returns the Nesterov direction, a new tensor of the parameter's shape."""
        buffer = self.state[param]["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def orthogonalize(matrices_NRC: Tensor, steps: int) -> Tensor:
    """Each matrix with its singular values pushed towards 1; returns [N, R, C] of the same dtype.

    Quintic Newton-Schulz, `steps` times X <- a X + (b A + c A A) X with A = X X^T, in the smaller of the two
    dimensions. Five steps bring singular values to about 0.7 .. 1.2, which is as good in training as 1
    (Jordan 2024). Computed in bfloat16, as Jordan's and torch's are, on GPUs and on processors that multiply
    it natively (2.5 times as fast there as float32); in float32 on others; for float64 in float64.
    """
    if matrices_NRC.shape[1] > matrices_NRC.shape[2]:
        return orthogonalize(matrices_NRC.mT, steps).mT
    a, b, c = COEFFICIENTS
    norm = torch.linalg.vector_norm(matrices_NRC, dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    x = (matrices_NRC / norm).to(_working_dtype(matrices_NRC))
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.to(matrices_NRC.dtype)


def _working_dtype(matrices: Tensor) -> torch.dtype:
    if matrices.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if matrices.is_cuda or _cpu_multiplies_bfloat16() else torch.float32


@cache
def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _batches(params: list[Tensor], splits: int) -> Iterator[list[Tensor]]:
    """Parameters whose matrices have one shape, dtype and device, in batches of limited size."""
    alike: dict[tuple, list[Tensor]] = {}
    for param in params:
        key = (*_matrix_shape(param, splits), param.dtype, param.device)
        batch = alike.setdefault(key, [])
        if batch and sum(p.numel() for p in batch) + param.numel() > _batch_limit(param):
            yield batch
            batch = alike[key] = []
        batch.append(param)
    yield from alike.values()


def _matrix_shape(param: Tensor, splits: int) -> tuple[int, int]:
    return param.shape[-2] // splits, param.shape[-1]


def _batch_limit(tensor: Tensor) -> int:
    return GPU_BATCH if tensor.is_cuda else CPU_BATCH
