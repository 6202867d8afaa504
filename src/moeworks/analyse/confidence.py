"""How sure the router is: weights, entropy, and the margin between what it took and what it left."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.intervals import Interval, mean_interval, stack_intervals
from moeworks.trace import LayerColumns, RoutingTrace
from moeworks.trace.block import filled_slots

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class ConfidenceTable:
    """One row per layer, quantiles at QUANTILES; None where the trace lacks the column.

    Tokens without experts take no part, and a layer without any assignment is NaN. Intervals are over
    documents and hold for all layers together.
    """

    layers: tuple[int, ...]
    weight_by_rank: np.ndarray | None
    """float [l, K]: mean share of the weights that the largest, second largest, ... weight has; weights are
    brought to a sum of 1 first, so that scaled and renormalised routers compare."""
    first_weight: Interval | None
    """[l]: the largest weight's mean share."""
    effective_choices: np.ndarray | None
    """float [l]: mean exp H(weights): K when all chosen experts weigh alike, 1 when one has it all."""
    entropy: Interval | None
    """[l]: mean H(router's scores) / log E; 1 is undecided, 0 certain. A router with pools of p experts
    reaches log p / log E at most."""
    entropy_quantiles: np.ndarray | None
    """float [l, 5]: quantiles over tokens of the same."""
    margin_quantiles: np.ndarray | None
    """float [l, 5], in logits; see LayerColumns.margin."""
    overruled: Interval | None
    """[l]: share of tokens with a negative margin, whose choice bias or groups changed."""


def confidence(trace: RoutingTrace) -> ConfidenceTable:
    """Weights, entropy and margins of every layer, as far as the trace records them."""
    rows: dict[str, list[np.ndarray]] = {}
    intervals: dict[str, list[Interval]] = {}

    def add(name: str, value: np.ndarray) -> None:
        rows.setdefault(name, []).append(value)

    def add_interval(name: str, values: np.ndarray) -> None:
        """Of values [T], NaN where a token takes no part."""
        found = mean_interval(trace, values, comparisons=trace.num_layers)
        intervals.setdefault(name, []).append(found)

    for number in trace.header.layers:
        layer = trace.layer(number)
        absent = ~filled_slots(layer.ids, trace.header.num_experts).any(axis=1)
        if layer.weights is not None:
            share = -np.sort(-normalised(layer.weights), axis=1)
            nats = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
            add("weight_by_rank", _mean(share[~absent]))
            add("effective_choices", _mean(np.exp(nats)[~absent]))
            add_interval("first_weight", np.where(absent, np.nan, share[:, 0]))
        if layer.entropy is not None:
            relative = layer.entropy.astype(np.float64) / np.log(max(trace.header.num_experts, 2))
            add("entropy_quantiles", _quantiles(relative[~absent]))
            add_interval("entropy", np.where(absent, np.nan, relative))
        if layer.margin is not None:
            margin = layer.margin.astype(np.float64)
            add("margin_quantiles", _quantiles(margin[~absent], method="nearest"))
            add_interval("overruled", np.where(absent, np.nan, margin < 0))

    def stacked(name: str) -> np.ndarray | None:
        return np.stack(rows[name]) if name in rows else None

    def interval(name: str) -> Interval | None:
        return stack_intervals(intervals[name]) if name in intervals else None

    return ConfidenceTable(
        layers=trace.header.layers,
        weight_by_rank=stacked("weight_by_rank"),
        first_weight=interval("first_weight"),
        effective_choices=stacked("effective_choices"),
        entropy=interval("entropy"),
        entropy_quantiles=stacked("entropy_quantiles"),
        margin_quantiles=stacked("margin_quantiles"),
        overruled=interval("overruled"),
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over tokens; NaN without any."""
    return np.asarray(values.mean(axis=0)) if len(values) else np.full(values.shape[1:], np.nan)


def _quantiles(values: np.ndarray, method: str = "linear") -> np.ndarray:
    """float [5] of values [T]; NaN without any."""
    if not len(values):
        return np.full(len(QUANTILES), np.nan)
    return np.quantile(values, QUANTILES, method=method)  # pyrefly: ignore[no-matching-overload]


def normalised(weights: np.ndarray) -> np.ndarray:
    """float64 [T, K]: weights over their sum; rows that sum to 0 stay 0."""
    exact = weights.astype(np.float64)
    total = exact.sum(axis=1, keepdims=True)
    return exact / np.where(total > 0, total, 1)


def by_weight(layer: LayerColumns) -> np.ndarray:
    """int [T, K]: the slots of each token by falling weight; as they are recorded where weights are not.

    Engines that sort the chosen experts, and routers whose choice is not a ranking, leave slots unordered.
    """
    if layer.weights is None:
        return np.broadcast_to(np.arange(layer.ids.shape[1]), layer.ids.shape)
    return np.argsort(-layer.weights.astype(np.float32), axis=1, kind="stable")
