"""The router: scores experts for each token, in float32 whatever the model's dtype."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeworks.config.model import RouterConfig
from moeworks.layers.init import init_matrix_
from moeworks.ops.routing import Routing, route


class Router(nn.Module):
    """Linear scores over the routes (routed, identity and zero experts)."""

    expert_bias: Tensor | None

    def __init__(self, config: RouterConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        routes = config.num_routes
        self.weight = nn.Parameter(torch.empty(routes, d_model))
        self.bias = nn.Parameter(torch.empty(routes)) if config.router_bias else None
        self.noise_weight = nn.Parameter(torch.empty(routes, d_model)) if config.noisy_top_k else None
        # A buffer, not a parameter: no gradient moves it, only balance updates do.
        bias = torch.zeros(routes, dtype=torch.float32) if config.selection_bias else None
        self.register_buffer("expert_bias", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as nn.Linear's; biases and the noise start at 0 (Shazeer et al. 2017, appendix A)."""
        init_matrix_(self.weight)
        for zero in (self.bias, self.noise_weight, self.expert_bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, sequence_ids_T: Tensor | None = None
    ) -> Routing:
        """Route T tokens; see Routing. Jitter and noise act in training only."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = _at_least_float32(x_TD)
            if self.training and self.config.input_jitter:
                spread = self.config.input_jitter
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - spread, 1 + spread)
            noise_std_TE = None
            if self.training and self.noise_weight is not None:
                noise_std_TE = F.softplus(self._linear(x_TD, self.noise_weight))
            return route(
                self._linear(x_TD, self.weight, self.bias),
                self.config,
                expert_bias_E=self.expert_bias,
                noise_std_TE=noise_std_TE,
                valid_T=valid_T,
                sequence_ids_T=sequence_ids_T,
            )

    @staticmethod
    def _linear(x_TD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x_TD, weight.to(x_TD.dtype), None if bias is None else bias.to(x_TD.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move and cast like any module, but never let expert_bias fall below float32.

        In bfloat16 a few hundred distinct biases become a handful, and most tokens change experts.
        """
        exact = self.expert_bias
        module = super()._apply(fn, recurse)
        if exact is not None and self.expert_bias is not None and self.expert_bias.dtype.itemsize < 4:
            self.expert_bias = exact.to(self.expert_bias.device)
        return module


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
