"""The routed experts' parameters, stacked."""

import torch
from torch import Tensor, nn

from moeworks.config.model import GATED, MoEConfig
from moeworks.layers.init import init_matrix_
from moeworks.ops.backends import Backend, choose_backend, run_experts
from moeworks.ops.experts import ExpertWeights, SharedWeights
from moeworks.ops.routing import Routing


class Experts(nn.Module):
    """E feed-forward blocks as stacked matrices: [E, 2F, D] or [E, F, D], and [E, D, F]."""

    def __init__(self, config: MoEConfig, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = backend
        E, F, D = config.num_experts, config.d_expert, config.d_model
        rows = 2 * F if config.activation in GATED else F
        up = nn.Parameter(torch.empty(E, rows, D))
        up_bias = nn.Parameter(torch.empty(E, rows)) if config.expert_linear_bias else None
        name = "gate_up" if config.activation in GATED else "up"
        self._up_names = (f"{name}_proj", f"{name}_bias")
        self.register_parameter(self._up_names[0], up)
        self.register_parameter(self._up_names[1], up_bias)
        self.down_proj = nn.Parameter(torch.empty(E, D, F))
        self.down_bias = nn.Parameter(torch.empty(E, D)) if config.expert_linear_bias else None
        self.mixed_bias = nn.Parameter(torch.empty(D)) if config.mixed_output_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each expert like a dense block of its width, all different; biases start at 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("_bias"):
                nn.init.zeros_(parameter)
            else:
                init_matrix_(parameter)

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.down_proj,)

    def forward(self, x_TD: Tensor, routing: Routing, shared: SharedWeights | None = None) -> Tensor:
        """y [T, D]: the weighted outputs of each token's experts, in the dtype that autocast asks for.

        With `shared` the output of the shared experts is added.
        """
        x_TD, weights = self._inputs(x_TD)
        y_TD = run_experts(x_TD, routing, weights, self.backend, shared)
        return y_TD if self.mixed_bias is None else y_TD + self.mixed_bias.to(y_TD.dtype)

    def explain_backend(self, x_TD: Tensor) -> str:
        """Which backend would serve this input, and why."""
        name, reason = choose_backend(*self._inputs(x_TD), self.backend)
        return f"{name}: {reason}"

    def _inputs(self, x_TD: Tensor) -> tuple[Tensor, ExpertWeights]:
        """The input in the dtype to compute in, and the weights as they are.

        Autocast does not reach into custom operators, and rounding the matrices of all experts would take far
        longer than a few tokens do: backends round those that they read.
        """
        device = x_TD.device.type
        up, up_bias = (getattr(self, name) for name in self._up_names)
        autocast = torch.is_autocast_enabled(device)
        weights = ExpertWeights(
            up_proj=up,
            down_proj=self.down_proj.to(up.dtype),
            up_bias=None if up_bias is None else up_bias.to(up.dtype),
            down_bias=None if self.down_bias is None else self.down_bias.to(up.dtype),
            activation=self.config.activation,
            weights_on=self.config.weights_on,
            recompute=self.config.recompute_experts,
            num_without_weights=self.config.num_routes - self.config.num_experts,
        )
        return x_TD.to(torch.get_autocast_dtype(device) if autocast else up.dtype), weights
