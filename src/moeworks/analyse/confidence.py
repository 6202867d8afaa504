"""How sure the router is: weights, entropy, and the margin between what it took and what it left."""

from dataclasses import dataclass

import numpy as np

from moeworks.trace import RoutingTrace
from moeworks.trace.block import filled_slots

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class ConfidenceTable:
    """One row per layer, quantiles at QUANTILES; None where the trace lacks the column."""

    layers: tuple[int, ...]
    weight_by_rank: np.ndarray | None
    """float [l, K]: mean share of the weights that the first, second, ... choice has; weights are brought
    to a sum of 1 first, so that scaled and renormalised routers compare."""
    effective_choices: np.ndarray | None
    """float [l]: mean exp H(weights): K when all chosen experts weigh alike, 1 when one has it all."""
    entropy: np.ndarray | None
    """float [l]: mean H(router's scores) / log E; 1 is undecided, 0 certain."""
    entropy_quantiles: np.ndarray | None
    """float [l, 5]."""
    margin_quantiles: np.ndarray | None
    """float [l, 5], in logits; see LayerColumns.margin."""
    overruled: np.ndarray | None
    """float [l]: share of tokens with a negative margin, whose choice bias or groups changed."""


def confidence(trace: RoutingTrace) -> ConfidenceTable:
    """Router confidence from the columns that the trace has: weights, entropy, margin."""
    fields = trace.header.fields
    by_rank, effective, entropy, entropy_q, margin_q, overruled = ([] for _ in range(6))
    for number in trace.header.layers:
        layer = trace.layer(number)
        if trace.header.empty_slots:  # tokens without experts are neither sure nor unsure of them
            layer = layer.take(np.flatnonzero(filled_slots(layer.ids, trace.header.num_experts).any(axis=1)))
        if layer.weights is not None:
            share = normalised(layer.weights)
            by_rank.append(share.mean(axis=0))
            nats = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
            effective.append(np.exp(nats).mean())
        if layer.entropy is not None:
            relative = layer.entropy.astype(np.float64) / np.log(max(trace.header.num_experts, 2))
            entropy.append(relative.mean())
            entropy_q.append(np.quantile(relative, QUANTILES))
        if layer.margin is not None:
            margin = layer.margin.astype(np.float64)
            margin_q.append(np.quantile(margin, QUANTILES, method="nearest"))
            overruled.append((margin < 0).mean())
    weights = ("weights" in fields, "entropy" in fields, "margin" in fields)
    groups = ((by_rank, effective), (entropy, entropy_q), (margin_q, overruled))
    columns = [
        np.stack(rows) if has else None for has, group in zip(weights, groups, strict=True) for rows in group
    ]
    return ConfidenceTable(trace.header.layers, *columns)


def normalised(weights: np.ndarray) -> np.ndarray:
    """float64 [T, K]: weights over their sum; rows that sum to 0 stay 0."""
    exact = weights.astype(np.float64)
    total = exact.sum(axis=1, keepdims=True)
    return exact / np.where(total > 0, total, 1)
