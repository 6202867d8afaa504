"""Sinkhorn against a plain loop, and against what its plan must be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.ops.choices.sinkhorn import sinkhorn_plan


def by_loops(logits: list[list[float]], iterations: int) -> list[list[float]]:
    """Clark et al. 2022, section 3.1: scale columns to T / E and rows to 1, in turns."""
    plan = [[math.exp(value) for value in row] for row in logits]
    tokens, experts = len(plan), len(plan[0])
    for _ in range(iterations):
        for e in range(experts):
            total = sum(row[e] for row in plan)
            for row in plan:
                row[e] *= tokens / experts / total
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_as_the_loop(tokens, experts, iterations, seed):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(tokens, experts, dtype=torch.float64)
    want = torch.tensor(by_loops(logits.tolist(), iterations), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn_plan(logits, iterations).exp(), want, rtol=1e-9, atol=1e-12)


def test_rows_sum_to_1_and_columns_to_their_share():
    torch.manual_seed(0)
    plan = sinkhorn_plan(torch.randn(40, 8) + torch.randn(8), 100).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(40))
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 5.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_large_logits_neither_overflow_nor_vanish(shift):
    torch.manual_seed(0)
    logits = 300 * torch.randn(20, 4)
    plan = sinkhorn_plan(logits + shift, 30)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan, sinkhorn_plan(logits, 30), rtol=1e-3, atol=0.05)


def test_padding_has_no_mass():
    torch.manual_seed(0)
    logits, valid = torch.randn(12, 4), torch.arange(12) < 8
    plan = sinkhorn_plan(logits, 20, valid)
    torch.testing.assert_close(plan[:8], sinkhorn_plan(logits[:8], 20))
    assert (plan[8:] == -torch.inf).all()
    assert (sinkhorn_plan(logits, 3, torch.zeros(12, dtype=torch.bool)) == -torch.inf).all()
