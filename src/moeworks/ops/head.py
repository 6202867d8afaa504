"""The output head of a language model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """logits = scale * (hidden W^T + bias)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of hidden states [..., D], in their dtype."""
        weight, bias = self.weight_VD, self.bias_V
        # Autocast converts them itself, and once for all the tokens of its context.
        if not torch.is_autocast_enabled(hidden.device.type):
            weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        logits = F.linear(hidden, weight, bias)
        return logits if self.scale == 1.0 else logits * self.scale

    def factors(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and a weight whose product is the logits; the bias is one more column of both."""
        weight_VD = self.weight_VD
        if self.bias_V is not None:
            hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], dim=-1)
            weight_VD = torch.cat([weight_VD, self.bias_V.to(weight_VD.dtype).unsqueeze(1)], dim=1)
        return hidden if self.scale == 1.0 else hidden * self.scale, weight_VD
