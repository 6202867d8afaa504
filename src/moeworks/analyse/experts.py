"""One row per expert: what it does, how sure the router is of it, and how long it keeps a text."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.confidence import by_weight, normalised
from moeworks.analyse.consistency import following
from moeworks.analyse.load import relative_load
from moeworks.trace import LayerColumns, RoutingTrace


@dataclass(frozen=True, eq=False)
class ExpertTable:
    """float [l, E] each, NaN for experts without a token; None where the trace lacks the column."""

    layers: tuple[int, ...]
    assignments: np.ndarray
    """int64 [l, E]: N_e."""
    load: np.ndarray
    """N_e over the mean of the layer; 1 is the fair share."""
    first: np.ndarray
    """Share of the expert's tokens in which it has the largest weight, or the first slot where the trace has
    no weights; 1/K where ranks are drawn at random."""
    keeps: np.ndarray
    """P(the next token uses the expert too | this one does), over neighbours inside sequences."""
    weight: np.ndarray | None
    """Mean share of a token's weights that the expert has, over its tokens; weights sum to 1 first."""
    entropy: np.ndarray | None
    """Mean H(router's scores) / log E over the expert's tokens: 1 is undecided."""
    margin: np.ndarray | None
    """Mean margin in logits over the expert's tokens with a finite one."""
    dropped: np.ndarray | None
    """Share of the expert's assignments that capacity dropped."""


def expert_table(trace: RoutingTrace) -> ExpertTable:
    """The figures of every expert of every layer, in one pass."""
    follows = following(trace)
    rows = [_of_layer(trace.layer(n), trace.header.num_experts, follows) for n in trace.header.layers]
    columns = {name: [part for row in rows if (part := row[name]) is not None] for name in rows[0]}
    stacked = {name: np.stack(parts) if parts else None for name, parts in columns.items()}
    return ExpertTable(trace.header.layers, **stacked)  # pyrefly: ignore[bad-argument-type]


def _of_layer(layer: LayerColumns, experts: int, follows: np.ndarray) -> dict[str, np.ndarray | None]:
    ids = layer.ids

    def total(values: np.ndarray | None = None) -> np.ndarray:
        """Sums [E] over assignments of values [T] or [T, K]; counts where there are none."""
        result = np.zeros(experts)
        for slot in range(ids.shape[1]):
            part = None if values is None else (values if values.ndim == 1 else values[:, slot])
            result += _sums(ids[:, slot], experts, part)
        return result

    def mean(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else _over(total(values), counts)

    counts = total()
    finite = None if layer.margin is None else np.isfinite(layer.margin)
    margin = None
    if layer.margin is not None and finite is not None:
        margin = _over(total(np.where(finite, layer.margin, 0).astype(np.float64)), total(finite * 1.0))
    relative = None if layer.entropy is None else layer.entropy / np.log(max(experts, 2))
    return {
        "assignments": counts.astype(np.int64),
        "load": relative_load(counts),
        "first": _over(_sums(np.take_along_axis(ids, by_weight(layer)[:, :1], 1)[:, 0], experts), counts),
        "keeps": _keeps(ids, follows, experts),
        "weight": mean(None if layer.weights is None else normalised(layer.weights)),
        "entropy": mean(relative),
        "margin": margin,
        "dropped": mean(None if layer.kept is None else ~layer.kept),
    }


def _keeps(ids: np.ndarray, follows: np.ndarray, experts: int) -> np.ndarray:
    early, late = ids[:-1][follows], ids[1:][follows]
    used, kept = np.zeros(experts), np.zeros(experts)
    for slot in range(ids.shape[1]):
        used += _sums(early[:, slot], experts)
        again = (early[:, slot : slot + 1] == late).any(axis=1)
        kept += _sums(early[again, slot], experts)
    return _over(kept, used)


def _sums(ids: np.ndarray, experts: int, values: np.ndarray | None = None) -> np.ndarray:
    """[E]: sums of values [T], or counts, by ids [T]; empty slots are left out."""
    return np.bincount(ids, values, experts + 1)[:experts]


def _over(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
