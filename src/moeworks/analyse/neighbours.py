"""The co-activation graph: pairs that meet more than their loads say, and an order that shows groups."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.coactivation import CoactivationTable
from moeworks.analyse.distributions import poisson_lower_bound

ERROR = 0.05
"""Chance that any of all pairs of all layers is listed though it meets no more often than MARGIN says."""
MARGIN = 1.25
"""A pair is listed when it surely meets this many times as often as its loads say: drawing uneven experts
without replacement alone gives pairs up to 1.2."""


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """Of every layer its strongest pairs, and of every expert its strongest neighbours."""

    layers: tuple[int, ...]
    looked_at: int
    """Number of pairs, of all layers, that the bounds are corrected for (Bonferroni)."""
    order: np.ndarray
    """int [l, E]: experts so that those that meet often stand side by side."""
    edges: tuple[np.ndarray, ...]
    """int [edges, 2] for each layer: pairs i < j whose bound is above MARGIN, the largest bound first."""
    lifts: tuple[np.ndarray, ...]
    """float [edges] for each layer: N_ij over what the loads alone give, the mean of both directions'
    baselines."""
    bounds: tuple[np.ndarray, ...]
    """float [edges] for each layer: lower bound of the lift, which holds for all pairs together. Counts are
    taken as Poisson's, as much more variable as documents show (CoactivationTable.dispersion)."""
    counts: tuple[np.ndarray, ...]
    """int64 [edges] for each layer: N_ij."""
    expected: tuple[np.ndarray, ...]
    """float [edges] for each layer: N_ij by the loads alone."""
    nearest: np.ndarray
    """int [l, E, n]: the partners in the listed pairs, the largest bound first; -1 where there are fewer."""
    nearest_lift: np.ndarray
    """float [l, E, n]: the lifts of those pairs, 0 where there are fewer."""


def neighbours(table: CoactivationTable, *, edges: int | None = None, nearest: int = 5) -> NeighbourTable:
    """The strongest `edges` pairs of each layer (None: as many as experts), and `nearest` of each expert.

    A pair's expected count is symmetric: the mean of N_i baseline_ij and N_j baseline_ji.
    """
    layers, experts = table.pairs.shape[:2]
    limit = experts if edges is None else edges
    looked_at = layers * experts * (experts - 1) // 2
    rows = [_of_layer(table, place, limit, nearest, looked_at) for place in range(layers)]
    order, pairs, lifts, bounds, counts, expected, near, near_lift = zip(*rows, strict=True)
    return NeighbourTable(
        table.layers, looked_at, np.stack(order), pairs, lifts, bounds, counts, expected,
        np.stack(near), np.stack(near_lift),
    )  # fmt: skip


def _of_layer(
    table: CoactivationTable, place: int, limit: int, nearest: int, looked_at: int
) -> tuple[np.ndarray, ...]:
    pairs, rate, baseline = table.pairs[place], table.rate[place], table.baseline[place]
    experts = len(pairs)
    # Rows of `rate` are N_ij / N_i: their sums are an expert's mean number of partners.
    partners = rate.sum(axis=1)
    uses = pairs.sum(axis=1) / np.where(partners > 0, partners, 1)
    one_way = uses[:, None] * baseline
    expected = (one_way + one_way.T) / 2
    dispersion = table.dispersion[place]
    least = dispersion * poisson_lower_bound(pairs / dispersion, ERROR / max(looked_at, 1))
    present = np.where(expected > 0, expected, np.inf)
    bound = least / present
    listed = bound > MARGIN
    lift, bound = np.where(listed, pairs / present, 0), np.where(listed, bound, 0)
    i, j = np.triu_indices(experts, 1)
    best = np.argsort(-bound[i, j], kind="stable")[:limit]
    best = best[listed[i, j][best]]
    i, j = i[best], j[best]
    near = np.argsort(-bound, axis=1, kind="stable")[:, :nearest]
    near_lift = np.take_along_axis(lift, near, 1)
    return (
        spectral_order(lift), np.stack([i, j], axis=1), lift[i, j], bound[i, j], pairs[i, j], expected[i, j],
        np.where(near_lift > 0, near, -1), near_lift,
    )  # fmt: skip


def spectral_order(affinity: np.ndarray) -> np.ndarray:
    """int [n]: a closed tour that places those with a large symmetric affinity [n, n] side by side.

    By the angle in the plane of the second and third eigenvectors of the normalised Laplacian (Shi & Malik
    2000; Atkins et al. 1998 for orders).
    """
    size = len(affinity)
    degree = affinity.sum(axis=1)
    if size < 3 or not degree.any():
        return np.arange(size)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    values, vectors = np.linalg.eigh(scale[:, None] * affinity * scale)
    plane = vectors[:, np.argsort(-values, kind="stable")[1:3]] * scale[:, None]
    return np.argsort(np.arctan2(plane[:, 1], plane[:, 0]), kind="stable")
