"""The dense feed-forward block."""

from torch import Tensor, nn

from moeworks.config.model import GATED, Activation
from moeworks.layers.init import make_linear
from moeworks.layers.plain import is_plain
from moeworks.ops.activations import activate
from moeworks.ops.native.use import are_plain


class MLP(nn.Module):
    """down(activation(up(x))); gated activations hold gate and up in one matrix, gate rows first."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation, *, bias: bool = False) -> None:
        super().__init__()
        self.activation: Activation = activation
        if activation in GATED:
            self.gate_up_proj = make_linear(d_model, 2 * d_ff, bias=bias)
        else:
            self.up_proj = make_linear(d_model, d_ff, bias=bias)
        self.down_proj = make_linear(d_ff, d_model, bias=bias)

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.down_proj.weight,)

    def plain_weights(self) -> tuple[Tensor, Tensor] | None:
        """The weights [2F, D] (or [F, D]) and [D, F] if this block is nothing but them.

        None when it has biases, or when calling it does more than multiply by them (hooks, adapters,
        quantised projections): then only calling the block computes what it does.
        """
        up, down = self.gate_up_proj if self.activation in GATED else self.up_proj, self.down_proj
        if not (is_plain(self, MLP) and is_plain(up, nn.Linear) and is_plain(down, nn.Linear)):
            return None
        if up.bias is not None or down.bias is not None or not are_plain(up.weight, down.weight):
            return None
        return up.weight, down.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        up = self.gate_up_proj if self.activation in GATED else self.up_proj
        return self.down_proj(activate(up(x), self.activation))
