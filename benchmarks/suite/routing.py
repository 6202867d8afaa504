"""Router weights that send given shares of the tokens to each expert, through any top-k router without bias.

The first feature of every token is 1, so the first column of the router's weights is a bias. It is fitted so
that the counts of the case's own tokens are those asked for; all arms that load these weights then route
alike, and pay for a router as they always do.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.registry import RefusedError

KINDS = ("uniform", "zipf", "trace")
ZIPF_EXPONENT = 1.0
TRACES = {8: "mixtral8x7b__c4", 64: "olmoe__c4"}
"""By number of experts: arrays [layers, E] of expert_counts_real.npz. The middle layer is taken."""
_FIT_STEPS = 100
_FIT_ERROR = 0.005
"""Share of the assignments that may differ from what was asked for."""


def fitted_router(x_TD: Tensor, kind: str, num_experts: int, top_k: int, data: str | None) -> Tensor:
    """[E, D] float32. Raises RefusedError when there is no trace for `kind` = 'trace'."""
    tokens, width = x_TD.shape
    generator = torch.Generator().manual_seed(2)
    weight_ED = torch.randn(num_experts, width, generator=generator) * width**-0.5
    weight_ED[:, 0] = 0
    target_E = expected_counts(shares(kind, num_experts, data), tokens, top_k)
    weight_ED[:, 0] = fitted_bias(x_TD @ weight_ED.t(), target_E, top_k)
    return weight_ED


def shares(kind: str, num_experts: int, data: str | None) -> Tensor:
    """[E], float64, sums to 1: the load of each expert, in no order of size."""
    if kind == "uniform":
        load = torch.ones(num_experts, dtype=torch.float64)
    elif kind == "zipf":
        load = torch.arange(1, num_experts + 1, dtype=torch.float64) ** -ZIPF_EXPONENT
        load = load[torch.randperm(num_experts, generator=torch.Generator().manual_seed(3))]
    else:
        load = _trace(num_experts, data)
    return load / load.sum()


def expected_counts(share_E: Tensor, tokens: int, top_k: int) -> Tensor:
    """[E]: shares of the T * K assignments, where none exceeds T: a token visits an expert once."""
    counts_E = share_E * tokens * top_k
    for _ in range(len(share_E)):
        full_E = counts_E >= tokens
        rest = tokens * top_k - int(full_E.sum()) * tokens
        open_share = share_E[~full_E].sum()
        if open_share == 0:
            break
        filled_E = torch.where(full_E, float(tokens), share_E * rest / open_share)
        if torch.equal(filled_E, counts_E):
            break
        counts_E = filled_E
    return counts_E.clamp(max=tokens)


def fitted_bias(logits_TE: Tensor, target_E: Tensor, top_k: int) -> Tensor:
    """[E]: what to add to the logits so that the top-k counts come to `target_E`."""
    num_experts = logits_TE.shape[1]
    bias_E = torch.log(target_E / target_E.mean()).float()
    best_E, best_error = bias_E, float("inf")
    for step in range(_FIT_STEPS):
        ids_TK = (logits_TE + bias_E).topk(top_k, dim=1).indices
        counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts)
        error = float((counts_E - target_E).abs().sum())
        if error < best_error:
            best_E, best_error = bias_E, error
        if error <= _FIT_ERROR * float(target_E.sum()):
            break
        rate = 0.5 / (1 + step / 20)
        bias_E = bias_E + rate * torch.log((target_E + 1) / (counts_E + 1)).float()
    return best_E


def _trace(num_experts: int, data: str | None) -> Tensor:
    if num_experts not in TRACES:
        raise RefusedError(f"no trace of a layer with {num_experts} experts")
    path = Path(data or "", "traces", "expert_counts_real.npz")
    if data is None or not path.is_file():
        raise RefusedError("no data folder with traces/expert_counts_real.npz: see --data")
    with np.load(path, allow_pickle=False) as arrays:
        layers = arrays[TRACES[num_experts]]
    return torch.from_numpy(layers[len(layers) // 2]).double() + 1
