"""A low-rank adapter on a stack of matrices: what LoRA on experts is, without a library."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """W [E, R, C] -> W + B A with B [E, R, r] and A [E, C, r] of each expert; both start random here."""

    def __init__(self, stacked: Tensor, rank: int = 2) -> None:
        super().__init__()
        experts, rows, columns = stacked.shape
        self.a = nn.Parameter(torch.randn(experts, columns, rank) * columns**-0.5)
        self.b = nn.Parameter(torch.randn(experts, rows, rank) * 0.3)

    def forward(self, stacked: Tensor) -> Tensor:
        """The adapted matrices."""
        return stacked + self.b @ self.a.mT
