"""RMSNorm (Zhang and Sennrich 2019)."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's, with the weight in the input's dtype: under autocast torch would leave its fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D], the dtype of `x`."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)
