"""The co-activation graph: pairs that meet more than their loads say, and an order that shows groups."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.coactivation import CoactivationTable


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """Of every layer its strongest pairs, and of every expert its strongest neighbours."""

    layers: tuple[int, ...]
    min_count: int
    """Pairs that meet in fewer tokens do not take part."""
    order: np.ndarray
    """int [l, E]: experts so that those that meet often stand side by side."""
    edges: tuple[np.ndarray, ...]
    """int [edges, 2] for each layer: pairs i < j with lift above 1, the strongest first."""
    lifts: tuple[np.ndarray, ...]
    """float [edges] for each layer: N_ij over what the loads alone give, the mean of both directions'
    baselines."""
    counts: tuple[np.ndarray, ...]
    """int64 [edges] for each layer: N_ij."""
    expected: tuple[np.ndarray, ...]
    """float [edges] for each layer: N_ij by the loads alone."""
    nearest: np.ndarray
    """int [l, E, n]: the neighbours with the largest lift, -1 where there are fewer."""
    nearest_lift: np.ndarray
    """float [l, E, n]."""


def neighbours(
    table: CoactivationTable, *, edges: int | None = None, nearest: int = 5, min_count: int = 20
) -> NeighbourTable:
    """The strongest `edges` pairs of each layer (None: as many as experts), and `nearest` of each expert.

    A pair's expected count is symmetric: the mean of N_i baseline_ij and N_j baseline_ji.
    """
    experts = table.pairs.shape[1]
    limit = experts if edges is None else edges
    rows = [_of_layer(table, place, limit, nearest, min_count) for place in range(len(table.layers))]
    order, pairs, lifts, counts, expected, near, near_lift = zip(*rows, strict=True)
    return NeighbourTable(
        table.layers, min_count, np.stack(order), pairs, lifts, counts, expected,
        np.stack(near), np.stack(near_lift),
    )  # fmt: skip


def _of_layer(
    table: CoactivationTable, place: int, limit: int, nearest: int, min_count: int
) -> tuple[np.ndarray, ...]:
    pairs, rate, baseline = table.pairs[place], table.rate[place], table.baseline[place]
    experts = len(pairs)
    # Rows of `rate` are N_ij / N_i: their sums are an expert's mean number of partners.
    partners = rate.sum(axis=1)
    uses = pairs.sum(axis=1) / np.where(partners > 0, partners, 1)
    one_way = uses[:, None] * baseline
    expected = (one_way + one_way.T) / 2
    lift = np.where((pairs >= min_count) & (expected > 0), pairs / np.where(expected > 0, expected, 1), 0)
    i, j = np.triu_indices(experts, 1)
    best = np.argsort(-lift[i, j], kind="stable")[:limit]
    best = best[lift[i, j][best] > 1]
    near = np.argsort(-lift, axis=1, kind="stable")[:, :nearest]
    near_lift = np.take_along_axis(lift, near, 1)
    return (
        spectral_order(lift), np.stack([i[best], j[best]], axis=1), lift[i, j][best], pairs[i, j][best],
        expected[i, j][best], np.where(near_lift > 0, near, -1), near_lift,
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
