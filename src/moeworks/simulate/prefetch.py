"""Loading experts before the router has chosen: how many of a token's experts would a guess have ready?"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.counts import count_groups

Guess = Literal["frequency", "previous-token", "previous-layer"]
GUESSES: tuple[Guess, ...] = get_args(Guess)


@dataclass(frozen=True, eq=False)
class PrefetchTable:
    """Recall of one guess, on the second half of the sequences; what it knows is from the first half."""

    guess: Guess
    layers: tuple[int, ...]
    budgets: tuple[int, ...]
    """Experts that are loaded ahead, each a column."""
    recall: np.ndarray
    """float [l, budgets]: share of the needed experts that were among them."""


def prefetch_recall(trace: RoutingTrace, guess: Guess, budgets: tuple[int, ...]) -> PrefetchTable:
    """How good a guess is, layer by layer.

    frequency       the layer's most frequent experts
    previous-token  the experts of the token before, the best ranked first, then the most frequent ones
    previous-layer  those that most often go with the experts that this token has in the layer before: the
    sum over
                    them of P(e in this layer | f in the layer before), counted. The first layer has
                    frequencies.

    Raises ConfigError for a budget that is no number of experts, and for fewer than two sequences.
    """
    trace.require_full_slots("prefetching")
    experts = trace.header.num_experts
    good = bool(budgets) and all(1 <= budget <= experts for budget in budgets)
    check(good, "budgets", budgets, f"must lie between 1 and {experts}")
    sequence = np.unique(trace.tokens.sequence, return_inverse=True)[1]
    halves = int(sequence.max()) + 1 if len(sequence) else 0
    check(halves >= 2, "sequences", halves, "must be at least 2: one half to learn from, one to test")
    learn = sequence < halves // 2
    test = np.flatnonzero(~learn)
    starts = np.r_[True, sequence[1:] != sequence[:-1]][test]
    before: np.ndarray | None = None
    recall = np.zeros((trace.num_layers, len(budgets)))
    for place, layer in enumerate(trace.header.layers):
        ids = trace.ids(layer)
        zeros = np.zeros(int(learn.sum()), np.int64)
        frequency = count_groups(ids[learn], zeros, 1, experts)[0].astype(np.float64)
        score = np.broadcast_to(frequency / max(frequency.sum(), 1), (len(test), experts)).copy()
        if guess == "previous-token":
            known = ~starts
            rank = 1 + np.arange(ids.shape[1])[::-1]
            rows = np.flatnonzero(known)[:, None]
            score[rows, ids[test - 1][known].astype(np.int64)] += rank
        elif guess == "previous-layer" and before is not None:
            score += _from_layer_before(before, ids, learn, test, experts)
        order = np.argsort(-score, axis=1, kind="stable")
        place_of = np.empty_like(order)
        np.put_along_axis(place_of, order, np.arange(experts)[None].repeat(len(test), 0), axis=1)
        needed = np.take_along_axis(place_of, ids[test].astype(np.int64), axis=1)
        recall[place] = [(needed < budget).mean() for budget in budgets]
        before = ids
    return PrefetchTable(guess, trace.header.layers, budgets, recall)


def _from_layer_before(
    before: np.ndarray, ids: np.ndarray, learn: np.ndarray, test: np.ndarray, experts: int
) -> np.ndarray:
    pairs = np.zeros((experts, experts))
    for slot in range(before.shape[1]):
        pairs += count_groups(ids[learn], before[learn, slot], experts, experts)
    alone = np.maximum(pairs.sum(axis=1, keepdims=True) / ids.shape[1], 1)
    chance = pairs / alone  # P(e here | f before)
    return chance[before[test].astype(np.int64)].sum(axis=1)
