"""RMSNorm (Zhang and Sennrich 2019) in three forms, and LayerNorm."""

import torch
from torch import Tensor, nn

from moeworks.config.model import ModelConfig
from moeworks.ops.norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm on ops.norm; the weight is cast to the input's dtype to keep the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D], the dtype of `x`."""
        return rms_norm(x, None if self.weight is None else self.weight.to(x.dtype), self.eps)


class ZeroCentredRMSNorm(nn.Module):
    """RMSNorm that multiplies by 1 + weight, in float32 (Qwen3-Next)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D], the dtype of `x`."""
        wide = x if x.dtype == torch.float64 else x.float()
        return rms_norm(wide, 1 + self.weight.to(wide.dtype), self.eps).to(x.dtype)


def make_norm(config: ModelConfig, width: int, eps: float | None = None) -> nn.Module:
    """The norm of `config`'s kind over `width` values; `eps` replaces norm_eps."""
    eps = config.norm_eps if eps is None else eps
    if config.norm.kind == "layer":
        return nn.LayerNorm(width, eps=eps, bias=config.norm.bias)
    if config.norm.zero_centred:
        return ZeroCentredRMSNorm(width, eps)
    return RMSNorm(width, eps=eps)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square, without a weight (Llama 4's norm of queries and keys)."""
    return rms_norm(x, None, eps)
