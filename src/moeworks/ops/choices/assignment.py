"""Linear assignment under equal load (BASE, Lewis et al. 2021), exactly.

BASE runs an auction; with tokens that repeat, which bid each other up by epsilon, that took minutes. Here
prices come first: given any, a token's best experts by score less price are the best assignment for the loads
that they happen to give. Then tokens move from overfull experts to those with room, each time along a path
through experts that costs least, which keeps the assignment the best for its loads (successive shortest
paths; Ahuja, Magnanti and Orlin 1993, section 9.7). Experts are few, so that a path is cheap.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

_PRICE_ROUNDS = 60


def assign(scores_TE: Tensor, top_k: int, valid_T: Tensor | None = None) -> Tensor:
    """bool [T, E]: K different experts for each valid token, and at most C = ceil(T K / E) tokens an expert.

    The sum of the chosen scores is the greatest possible, up to the rounding of float64. Computed on the CPU.
    """
    chosen_TE = torch.zeros_like(scores_TE, dtype=torch.bool)
    places = torch.arange(len(scores_TE), device=scores_TE.device)
    rows = places if valid_T is None else places[valid_T]
    scores = scores_TE.detach()[rows].double().cpu().numpy()
    tokens, experts = scores.shape
    if tokens:
        held = _assign(scores, top_k, math.ceil(tokens * top_k / experts))
        chosen_TE[rows] = torch.from_numpy(held).to(scores_TE.device)
    return chosen_TE


def _assign(scores: np.ndarray, top_k: int, capacity: int) -> np.ndarray:
    tokens, experts = scores.shape
    if top_k == experts:
        return np.ones(scores.shape, np.bool_)
    # Places that stay free go to rows that want one expert and do not care which: all experts end up full.
    spare = experts * capacity - tokens * top_k
    scores = np.concatenate([scores, np.zeros((spare, experts))])
    wanted = np.r_[np.full(tokens, top_k), np.ones(spare, np.int64)]
    moves = _Moves(scores, _best(scores - _prices(scores, wanted, capacity), wanted))
    while (path := moves.cheapest(moves.held.sum(axis=0) - capacity)) is not None:
        moves.take(path)
    return moves.held[:tokens]


def _best(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool [T, E]: the `wanted` [T] greatest of each row; all but the last few rows want equally many."""
    held = np.zeros(values.shape, np.bool_)
    for number in np.unique(wanted):
        rows = np.flatnonzero(wanted == number)
        best = np.argpartition(-values[rows], number - 1, axis=1)[:, :number]
        held[rows[:, None], best] = True
    return held


def _prices(scores: np.ndarray, wanted: np.ndarray, capacity: int) -> np.ndarray:
    """[E]: prices under which loads are near `capacity`, by shrinking steps against the surplus."""
    prices = np.zeros(scores.shape[1])
    step = float(scores.std())
    best, least = prices, math.inf
    for _ in range(_PRICE_ROUNDS):
        surplus = _best(scores - prices, wanted).sum(axis=0) - capacity
        if (total := int(np.abs(surplus).sum())) < least:
            best, least = prices, total
        if not total:
            break
        prices = prices + step * surplus / capacity
        step *= 0.93
    return best


class _Moves:
    """What it costs to move a token from one expert to another, kept up to date."""

    def __init__(self, scores: np.ndarray, held: np.ndarray) -> None:
        experts = scores.shape[1]
        self.held = held
        self._scores = scores
        self._cost = np.full((experts, experts), np.inf)
        self._token = np.zeros((experts, experts), np.int64)
        # Differences below this are rounding: they must not make cycles of equal assignments.
        self._noise = 1e-12 * max(float(np.abs(scores).max()), 1e-300)
        for expert in range(experts):
            self._refresh(expert)

    def cheapest(self, surplus: np.ndarray) -> list[int] | None:
        """Experts of the cheapest path from one with a surplus to one with room; None if there is none."""
        if not (surplus > 0).any():
            return None
        distance = np.where(surplus > 0, 0.0, np.inf)
        before = np.full(len(surplus), -1)
        for _ in range(len(surplus)):
            through = distance[:, None] + self._cost
            nearest = through.argmin(axis=0)
            shorter = through[nearest, np.arange(len(surplus))]
            better = shorter < distance - self._noise
            if not better.any():
                break
            distance = np.where(better, shorter, distance)
            before = np.where(better, nearest, before)
        path = [int(np.where(surplus < 0, distance, np.inf).argmin())]
        while before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def take(self, path: list[int]) -> None:
        """Move one token along each step of the path."""
        stale = np.zeros(len(self._cost), np.bool_)
        stale[path] = True
        for source, target in itertools.pairwise(path):
            token = self._token[source, target]
            self.held[token, source], self.held[token, target] = False, True
            stale |= self.held[token]
        for expert in np.flatnonzero(stale):
            self._refresh(int(expert))

    def _refresh(self, expert: int) -> None:
        """The cheapest move from `expert` to every other."""
        tokens = np.flatnonzero(self.held[:, expert])
        if not len(tokens):
            self._cost[expert] = np.inf
            return
        loss = self._scores[tokens, expert][:, None] - self._scores[tokens]
        loss[self.held[tokens]] = np.inf
        cheapest = loss.argmin(axis=0)
        self._cost[expert] = loss[cheapest, np.arange(loss.shape[1])]
        self._token[expert] = tokens[cheapest]
