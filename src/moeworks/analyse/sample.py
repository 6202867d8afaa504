"""Some texts of a trace with the routing of each of their tokens: what a report can show token by token."""

from dataclasses import dataclass, replace

import numpy as np

from moeworks.analyse.confidence import by_weight, normalised
from moeworks.errors import check
from moeworks.trace import LayerColumns, RoutingTrace


@dataclass(frozen=True, eq=False)
class TextSample:
    """t tokens of some texts."""

    layers: tuple[int, ...]
    starts: np.ndarray
    """int [texts]: where each text begins among the t tokens."""
    sequences: np.ndarray
    """int [texts]: the number of the sequence it is cut from."""
    domains: tuple[str, ...]
    """Domain of each text."""
    token_ids: np.ndarray
    """int [t], -1 where it is not known."""
    positions: np.ndarray
    """int [t]."""
    ids: np.ndarray
    """int [l, t, K], by falling weight where weights are recorded; the number of experts marks an empty
    slot."""
    weights: np.ndarray | None
    """float [l, t, K]: shares of the weights, which sum to 1, in the same order."""
    entropy: np.ndarray | None
    """float [l, t]: over log E."""
    margin: np.ndarray | None
    """float [l, t], in logits."""
    runners_up: np.ndarray | None
    """int [l, t, r]: the best experts that were not chosen; None without logits."""
    behind: np.ndarray | None
    """float [l, t, r]: the logit of a runner-up minus the least of a chosen expert; NaN without one."""


def sample_texts(
    trace: RoutingTrace,
    *,
    texts: int = 12,
    length: int = 250,
    assignments: int = 400_000,
    runners_up: int = 3,
    seed: int = 0,
) -> TextSample:
    """The beginnings of up to `texts` sequences, domains in turn, within a budget of assignments.

    Long sequences come before short ones, so that there is something to read; ties are drawn.
    """
    check(texts >= 1 and length >= 1, "texts", (texts, length), "there must be at least 1 of 1 token")
    header = trace.header
    room = max(assignments // (len(header.layers) * header.top_k), 1)
    length = min(length, max(room // texts, min(room, 32)))
    tokens = trace.tokens
    first = np.flatnonzero(np.r_[True, tokens.sequence[1:] != tokens.sequence[:-1]])
    size = np.minimum(np.diff(np.r_[first, len(tokens)]), length)
    chosen = _in_turn(tokens.domain[first], size, min(texts, max(room // length, 1)), seed)
    rows = np.concatenate([np.arange(first[i], first[i] + size[i]) for i in chosen])
    layers = [_in_order(trace.layer(number).take(rows)) for number in header.layers]
    spare = min(runners_up, header.num_experts - header.top_k)
    behind = [_runners_up(layer, spare) for layer in layers] if "logits" in header.fields and spare else None
    scale = np.log(max(header.num_experts, 2))
    return TextSample(
        layers=header.layers,
        starts=np.r_[0, np.cumsum(size[chosen])[:-1]],
        sequences=tokens.sequence[first[chosen]],
        domains=tuple(tokens.domains[code] for code in tokens.domain[first[chosen]]),
        token_ids=tokens.token_id[rows],
        positions=tokens.position[rows],
        ids=np.stack([layer.ids for layer in layers]),
        weights=_stacked([None if x.weights is None else normalised(x.weights) for x in layers]),
        entropy=_stacked([None if x.entropy is None else x.entropy / scale for x in layers]),
        margin=_stacked([x.margin for x in layers]),
        runners_up=None if behind is None else np.stack([part[0] for part in behind]),
        behind=None if behind is None else np.stack([part[1] for part in behind]),
    )


def _in_order(layer: LayerColumns) -> LayerColumns:
    """The slots of each token by falling weight."""
    if layer.weights is None:
        return layer
    order = by_weight(layer)
    ids, weights = (np.take_along_axis(values, order, 1) for values in (layer.ids, layer.weights))
    return replace(layer, ids=ids, weights=weights)


def _in_turn(domain: np.ndarray, size: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The longest of each domain first, domains in turn; in the order of domains."""
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(size)), -size))
    turn = np.zeros(len(size), np.int64)
    for code in np.unique(domain):
        own = order[domain[order] == code]
        turn[own] = np.arange(len(own))
    best = np.lexsort((domain, turn))[:number]
    return best[np.lexsort((turn[best], domain[best]))]


def _stacked(parts: list[np.ndarray | None]) -> np.ndarray | None:
    present = [part for part in parts if part is not None]
    return np.stack(present).astype(np.float64) if present else None


def _runners_up(layer: LayerColumns, number: int) -> tuple[np.ndarray, np.ndarray]:
    assert layer.logits is not None
    ids = layer.ids.astype(np.int64)
    # One more column, so that an empty slot is neither the least of the chosen nor a runner-up.
    logits = np.pad(layer.logits.astype(np.float64), ((0, 0), (0, 1)), constant_values=np.inf)
    least = np.take_along_axis(logits, ids, 1).min(axis=1, keepdims=True)
    least[np.isinf(least)] = np.nan
    logits[:, -1] = -np.inf
    np.put_along_axis(logits, ids, -np.inf, 1)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :number]
    return best, np.take_along_axis(logits, best, 1) - least
