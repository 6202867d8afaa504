"""Figures of expert load, from counts of assignments."""

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD_LOAD = 0.01
"""An expert is called dead when it takes less than this share of a balanced load."""


def effective_experts(counts_E: Tensor) -> Tensor:
    """float64 [...] of counts [..., E]: exp H(load), the experts of a balanced layer with this entropy."""
    load = counts_E.double() / counts_E.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.special.entr(load).sum(dim=-1).exp()


def breadth(counts_E: Tensor, top_k: int) -> Tensor:
    """float64 [...] of counts [..., E]: (effective experts - K) / (E - K), within [0, 1].

    1 where all experts do the same, 0 where all tokens take the same K; 1 where K = E leaves no choice.
    """
    experts = counts_E.shape[-1]
    if experts <= top_k:
        return torch.ones(counts_E.shape[:-1], dtype=torch.float64)
    return ((effective_experts(counts_E) - top_k) / (experts - top_k)).clamp(0, 1)


def max_violation(counts_lE: Tensor) -> Tensor:
    """MaxVio, float64 [...] of counts [..., E]: max_e c_e / mean c - 1 (Wang et al. 2024, section 4.1)."""
    counts = counts_lE.double()
    return counts.amax(dim=-1) / counts.mean(dim=-1).clamp(min=1e-12) - 1


@dataclass(frozen=True)
class LoadFigures:
    """One value per layer."""

    max_vio: list[float]
    """max_e c_e / mean c - 1 (Wang et al. 2024, section 4.1): 0 is balanced, E/K - 1 the worst."""
    dead_experts: list[int]
    """Experts with less than DEAD_LOAD of the balanced load."""
    load_entropy: list[float]
    """H(load) / log E: 1 is balanced, 0 is one expert for everything."""


def load_figures(counts_lE: Tensor) -> LoadFigures:
    """Figures of int64 counts [layers, E], pooled over whatever the counts cover."""
    counts = counts_lE.double()
    mean_l1 = counts.mean(dim=1, keepdim=True).clamp(min=1e-12)
    load = counts / counts.sum(dim=1, keepdim=True).clamp(min=1e-12)
    uniform = torch.log(torch.tensor(float(max(counts.shape[1], 2)), dtype=torch.float64))
    return LoadFigures(
        max_vio=max_violation(counts_lE).tolist() if counts.numel() else [],
        dead_experts=(counts < DEAD_LOAD * mean_l1).sum(dim=1).tolist(),
        load_entropy=(torch.special.entr(load).sum(dim=1) / uniform).tolist(),
    )
