"""Linear assignment against scipy, which solves it in another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from moeworks.ops.choices.assignment import assign


def greatest_sum(scores: np.ndarray, top_k: int, capacity: int) -> float:
    """K = 1: each expert as `capacity` columns; else a linear programme with whole corners."""
    tokens, experts = scores.shape
    if top_k == 1:
        wide = np.repeat(scores, capacity, axis=1)
        return wide[linear_sum_assignment(wide, maximize=True)].sum()
    per_token = np.kron(np.eye(tokens), np.ones(experts))
    per_expert = np.kron(np.ones(tokens), np.eye(experts))
    solved = linprog(
        -scores.ravel(), A_ub=per_expert, b_ub=np.full(experts, capacity),
        A_eq=per_token, b_eq=np.full(tokens, top_k), bounds=(0, 1),
    )  # fmt: skip
    return -solved.fun


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_sum_is_the_greatest_under_equal_load(data):
    experts = data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, experts))
    tokens = data.draw(st.integers(1, 14))
    seed = data.draw(st.integers(0, 2**31))
    torch.manual_seed(seed)
    scores = torch.randn(tokens, experts, dtype=torch.float64) + 2 * torch.randn(experts, dtype=torch.float64)
    if data.draw(st.booleans()):
        scores = scores.round()  # ties
    if data.draw(st.booleans()):
        scores = scores[torch.randint(tokens, (tokens,))]  # tokens that repeat
    chosen = assign(scores, top_k)
    capacity = math.ceil(tokens * top_k / experts)
    assert (chosen.sum(1) == top_k).all()
    assert chosen.sum(0).max() <= capacity
    want = greatest_sum(scores.numpy(), top_k, capacity)
    assert scores[chosen].sum().item() == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_a_larger_one():
    torch.manual_seed(0)
    scores = torch.randn(400, 16) + torch.randn(16)
    chosen = assign(scores, 1)
    assert chosen.sum(0).tolist() == [25] * 16
    want = greatest_sum(scores.double().numpy(), 1, 25)
    assert scores.double()[chosen].sum().item() == pytest.approx(want, rel=1e-9)


def test_padding_takes_no_place():
    torch.manual_seed(0)
    scores, valid = torch.randn(12, 4), torch.arange(12) < 8
    chosen = assign(scores, 2, valid)
    assert torch.equal(chosen[:8], assign(scores[:8], 2))
    assert not chosen[8:].any()
    assert not assign(scores, 2, torch.zeros(12, dtype=torch.bool)).any()


def test_equal_scores_are_shared_out():
    assert assign(torch.zeros(12, 4), 2).sum(0).tolist() == [6] * 4
