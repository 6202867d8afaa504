"""How evenly the experts of a layer are used."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.intervals import Interval, document_codes, ratio_interval, stack_intervals
from moeworks.errors import check
from moeworks.ops.load import DEAD_LOAD
from moeworks.trace import ExpertCounts, RoutingTrace, count_experts
from moeworks.trace.counts import count_groups
from moeworks.trace.expected import check_devices


@dataclass(frozen=True, eq=False)
class LoadTable:
    """One value per layer (l), over all tokens that were counted: the global figures."""

    layers: tuple[int, ...]
    load: np.ndarray
    """float [l, E]: load_e = c_e / sum c; 0 in a layer without an assignment."""
    max_vio: np.ndarray
    """float [l], see max_vio; NaN in a layer without an assignment, as all that follow but `dead`."""
    cv: np.ndarray
    """float [l]: std / mean of the counts (Shazeer et al. 2017, section 4); 0 is balanced."""
    entropy: np.ndarray
    """float [l]: H(load) / log E; 1 is balanced, 0 is one expert for everything."""
    effective_experts: np.ndarray
    """float [l]: exp H(load), the number of experts of a balanced layer with this entropy."""
    dead: np.ndarray
    """int [l]: experts under DEAD_LOAD of the balanced load, all in a layer without an assignment."""
    gini: np.ndarray
    """float [l], see gini."""


def load_table(counts: ExpertCounts, *, dead_below: float = DEAD_LOAD) -> LoadTable:
    """All figures of load, groups together; `dead_below` is a share of the balanced load."""
    total = counts.total().astype(np.float64)
    mean = total.mean(axis=1, keepdims=True)
    used = np.where(mean[:, 0] > 0, mean[:, 0], np.nan)
    nats = np.where(mean[:, 0] > 0, load_entropy(total), np.nan)
    return LoadTable(
        layers=counts.layers,
        load=shares(total),
        max_vio=max_vio(total),
        cv=total.std(axis=1) / used,
        entropy=nats / np.log(max(total.shape[1], 2)),
        effective_experts=np.exp(nats),
        dead=(total < np.where(mean > 0, dead_below * mean, 1)).sum(axis=1),
        gini=np.where(mean[:, 0] > 0, gini(total), np.nan),
    )


def mean_experts(trace: RoutingTrace) -> np.ndarray:
    """float [l]: experts of a token, K where no slot is empty."""
    return count_experts(trace).total().sum(axis=1) / max(trace.num_tokens, 1)


def shares(counts: np.ndarray) -> np.ndarray:
    """float [..., E]: counts over their sum; 0 where nothing was counted."""
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)


def relative_load(counts: np.ndarray) -> np.ndarray:
    """Counts [..., E] over the mean count of their row; NaN in rows without a count."""
    mean = counts.mean(axis=-1, keepdims=True)
    return np.divide(counts, mean, out=np.full(counts.shape, np.nan), where=mean > 0)


def max_vio(counts: np.ndarray) -> np.ndarray:
    """float [...] of counts [..., E]: max_e c_e / mean c - 1 (Wang et al. 2024, section 4.1).

    0 is balanced, E/K - 1 the worst, NaN where nothing was counted.

    >>> float(max_vio(np.array([6, 3, 3, 0])))
    1.0
    """
    mean = counts.mean(axis=-1)
    return np.asarray(counts.max(axis=-1) / np.where(mean > 0, mean, np.nan) - 1)


def max_vio_interval(trace: RoutingTrace) -> Interval:
    """Intervals [l] of MaxVio over documents, which hold for all layers together.

    The busiest expert is found by looking at all of them. So each expert's load gets an interval that holds
    for all experts of all layers at once, and the largest of their ends are those of the largest load. A
    bootstrap of MaxVio itself would lie above it: resampled maxima are larger.
    """
    codes, documents = document_codes(trace)
    experts, layers = trace.header.num_experts, trace.header.layers
    rows = []
    for layer in layers:
        counts = count_groups(trace.ids(layer), codes, documents, experts)
        fair = counts.sum(axis=1, keepdims=True) / experts
        load = ratio_interval(counts, fair, comparisons=experts * len(layers))
        most = len(codes) / fair.sum() if fair.any() else np.nan  # one expert in every token
        low, high = np.maximum(load.low.max(), 1), np.minimum(load.high.max(), most)
        estimate = np.asarray(load.estimate.max() - 1)
        rows.append(Interval(estimate, np.asarray(low - 1), np.asarray(high - 1), load.level, documents))
    return stack_intervals(rows)


def load_entropy(counts: np.ndarray) -> np.ndarray:
    """float [...] nats: H(load) of counts [..., E]."""
    load = shares(counts)
    return np.asarray(-(load * np.log(np.where(load > 0, load, 1))).sum(axis=-1))


def gini(counts: np.ndarray) -> np.ndarray:
    """float [...]: sum_ij |c_i - c_j| / (2 E sum c): 0 is balanced, 1 - 1/E one expert for everything.

    >>> float(gini(np.array([0, 0, 0, 8])))
    0.75
    """
    ordered = np.sort(counts.astype(np.float64), axis=-1)
    size = ordered.shape[-1]
    rank = 2 * np.arange(1, size + 1) - size - 1
    return np.asarray((ordered * rank).sum(axis=-1) / (size * np.maximum(ordered.sum(axis=-1), 1e-12)))


def device_balancedness(counts: ExpertCounts, num_devices: int) -> np.ndarray:
    """float [l]: mean over max load of `num_devices` equal runs of experts = 1 / (1 + MaxVio of devices).

    The time of an expert-parallel layer is that of its busiest device, so this is its efficiency (SGLang and
    EPLB call it balancedness). Raises ConfigError when the devices do not divide the experts.
    """
    total = counts.total()
    experts = total.shape[1]
    check_devices(experts, num_devices)
    return 1 / (1 + max_vio(total.reshape(len(total), num_devices, -1).sum(axis=2)))


@dataclass(frozen=True, eq=False)
class BatchLoadTable:
    """Figures of batches of consecutive tokens, and their means."""

    layers: tuple[int, ...]
    batch_tokens: int
    max_vio: np.ndarray
    """float [l]: MaxVio_batch, the mean over batches (Wang et al. 2024, section 4.1)."""
    max_vio_of_batch: np.ndarray
    """float [l, batches]."""
    shuffled: np.ndarray
    """float [permutations]: the mean over batches and layers when tokens come in random order; empty for a
    single batch."""


def batch_load_table(
    trace: RoutingTrace, batch_tokens: int, *, permutations: int = 39, seed: int = 0
) -> BatchLoadTable:
    """MaxVio of batches of `batch_tokens` tokens in the order of the trace, without an unfinished last one.

    Raises ConfigError when there is not one whole batch.
    """
    batches = trace.num_tokens // batch_tokens if batch_tokens >= 1 else 0
    check(batches >= 1, "batch_tokens", batch_tokens, f"must lie between 1 and {trace.num_tokens}")
    batch = np.arange(batches * batch_tokens) // batch_tokens
    header, rng = trace.header, np.random.default_rng(seed)
    # One order for all layers: what a token's layers share stays together.
    orders = [rng.permutation(len(batch)) for _ in range(permutations if batches > 1 else 0)]
    found, null = [], np.zeros((len(header.layers), len(orders)))
    for place, layer in enumerate(header.layers):
        ids = trace.ids(layer)[: len(batch)]
        found.append(max_vio(count_groups(ids, batch, batches, header.num_experts)))
        null[place] = [
            max_vio(count_groups(ids, batch[order], batches, header.num_experts)).mean() for order in orders
        ]
    by_batch = np.stack(found)
    return BatchLoadTable(header.layers, batch_tokens, by_batch.mean(axis=1), by_batch, null.mean(axis=0))
