"""The tokens that stand out for each expert, of all layers at once."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.distributions import poisson_lower_bound
from moeworks.analyse.specialisation import vocabulary_specialisation
from moeworks.trace import RoutingTrace

ERROR = 0.05
"""Chance that any token of all experts and layers is listed though it comes no more often than others."""


@dataclass(frozen=True, eq=False)
class TopTokenTable:
    """For every expert its `n` tokens with the largest z, and how much it is one of words."""

    layers: tuple[int, ...]
    min_count: int
    """Rarer tokens do not take part: one that is seen once always has a share of 1."""
    token_ids: np.ndarray
    """int [l, E, n]: -1 where fewer tokens surely come more often than the expert's share of all tokens says
    (their count as Poisson's, corrected for all tokens, experts and layers)."""
    counts: np.ndarray
    """int64 [l, E, n]: how often the token occurs."""
    shares: np.ndarray
    """float [l, E, n]: vocabulary specialisation N_{e,x} / N_x."""
    z: np.ndarray
    """float [l, E, n]: standard deviations above what permuted token ids give."""
    knowing: np.ndarray
    """float [l, E]: sum_x N_{e,x}^2 / N_x / sum_x N_{e,x}: how often the expert works on the tokens that it
    works on, the mean of its vocabulary specialisation over its own assignments. 1 is an expert that is
    chosen by the token id alone. NaN for experts without a token that is common enough."""
    knowing_null: np.ndarray
    """float [l, E]: the same for permuted token ids, from the exact variance of the null."""


def top_tokens(trace: RoutingTrace, *, number: int = 8, min_count: int = 10) -> TopTokenTable:
    """Top tokens of all experts. Raises ConfigError when token ids are not known."""
    parts = [_of_layer(trace, layer, number, min_count) for layer in trace.header.layers]
    columns = [np.stack(column) for column in zip(*parts, strict=True)]
    return TopTokenTable(trace.header.layers, min_count, *columns)


def _of_layer(trace: RoutingTrace, layer: int, number: int, min_count: int) -> tuple[np.ndarray, ...]:
    table = vocabulary_specialisation(trace, layer, min_count=min_count)
    z, experts = table.z(), trace.header.num_experts
    found = min(number, len(z))
    ids = np.full((experts, number), -1, np.int64)
    counts, shares, scores = np.zeros((experts, number), np.int64), *np.zeros((2, experts, number))
    if found:
        best = np.argpartition(-z, found - 1, axis=0)[:found]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(z, best, 0), axis=0, kind="stable"), 0)
        scores[:, :found] = np.take_along_axis(z, best, 0).T
        least = poisson_lower_bound(
            table.counts[:, None] * table.specialisation, ERROR / (z.size * trace.num_layers)
        )
        surely = least > table.counts[:, None] * table.null_mean
        above = np.take_along_axis(surely, best, 0).T
        ids[:, :found] = np.where(above, table.token_ids[best.T], -1)
        counts[:, :found] = np.where(above, table.counts[best.T], 0)
        shares[:, :found] = np.where(above, np.take_along_axis(table.specialisation, best, 0).T, 0)
    often = table.counts[:, None].astype(np.float64)
    uses = (often * table.specialisation).sum(axis=0)
    expected = table.null_mean**2 + table.null_std**2
    chance = (often * expected).sum(axis=0) / np.maximum((often * table.null_mean).sum(axis=0), 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        knowing = (often * table.specialisation**2).sum(axis=0) / uses
    return ids, counts, shares, scores, knowing, np.where(uses > 0, chance, np.nan)
