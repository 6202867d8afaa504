"""One MoE layer as data: its shape, and weights and inputs that every arm loads."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suite.registry import Case, Settings
from suite.routing import fitted_router


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """T tokens of width D through E experts of hidden width F, K of them each."""

    T: int
    D: int
    E: int
    K: int
    F: int
    routing: str = "uniform"

    def case(self, prefix: str = "") -> Case:
        """The case with this shape."""
        name = f"E {self.E}, k {self.K}, F {self.F}, d {self.D}, T {self.T:,}"
        if self.routing != "uniform":
            name += f", {self.routing}"
        return Case(prefix + name, asdict(self))

    @property
    def active_width(self) -> int:
        """Hidden width of the dense block with the same FLOPs a token, but for the router."""
        return self.K * self.F


LAYERS: tuple[dict[str, Any], ...] = (
    dict(E=8, K=2, F=1792),
    dict(E=64, K=8, F=352),
    dict(E=256, K=8, F=128),
)
"""The three layers, from few wide to many narrow experts."""
TINY = LayerShape(T=64, D=32, E=8, K=2, F=16)


@dataclass(frozen=True, eq=False)
class LayerData:
    """Equal for equal shapes, in every process."""

    x_TD: Tensor
    """Its first feature is 1, see suite.routing."""
    grad_TD: Tensor
    """The gradient of the layer's output."""
    router_ED: Tensor
    gate_up: Tensor
    """[E, 2F, D]: gate rows, then up rows."""
    down: Tensor
    """[E, D, F]."""


def layer_data(shape: LayerShape, settings: Settings) -> LayerData:
    """Draw them. Raises RefusedError when there is no trace for the routing asked for."""
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=generator).mul_(scale).to(**settings.placement)

    x_TD = torch.randn(shape.T, shape.D, generator=generator)
    x_TD[:, 0] = 1
    router_ED = fitted_router(x_TD, shape.routing, shape.E, shape.K, settings.data)
    return LayerData(
        x_TD=x_TD.to(**settings.placement).requires_grad_(),
        grad_TD=draw(shape.T, shape.D),
        router_ED=router_ED.to(**settings.placement),
        gate_up=draw(shape.E, 2 * shape.F, shape.D, scale=shape.D**-0.5),
        down=draw(shape.E, shape.D, shape.F, scale=shape.F**-0.5),
    )


class LayerRun:
    """Forward and backward of a module, as in a training step that drops its gradients first."""

    def __init__(self, module: nn.Module, data: LayerData, *, rows: int = 1) -> None:
        """The tokens go in as [rows, T / rows, D]."""
        self.module, self.data = module.train(), data
        self.parameters = list(module.parameters())
        self._x = data.x_TD
        self._size = (rows, -1, data.x_TD.shape[1])
        self._y = data.x_TD

    def run(self) -> None:
        """One pass over all tokens."""
        self._pass(self.data.x_TD, self.data.grad_TD)

    def warm_up(self) -> None:
        """A pass over few tokens that are no part of the data."""
        few = self.data.x_TD.detach()[: max(self._size[0], 64)].clone().requires_grad_()
        self._pass(few, torch.ones_like(few))

    def fingerprint(self) -> list[float]:
        """Norms of the last output and gradient of the input, and those of the weights together."""
        assert self._x.grad is not None
        grads = [_norm(p.grad) for p in self.parameters if p.grad is not None]
        return [_norm(self._y), _norm(self._x.grad), math.hypot(*grads)]

    def _pass(self, x_TD: Tensor, grad_TD: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self._x, x_TD.grad = x_TD, None
        output = self.module(x_TD.view(self._size))
        y = output[0] if isinstance(output, tuple) else output
        y.backward(grad_TD.view_as(y))
        self._y = y.detach()


def _norm(tensor: Tensor) -> float:
    """Summed in float64: over millions of elements float32 is off by a thousandth."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
