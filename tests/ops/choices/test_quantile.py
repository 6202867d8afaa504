"""Quantile balancing: the rule written out, and that it finds the prices of the balanced assignment."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import BalanceConfig
from moeworks.ops.choices.assignment import assign
from moeworks.ops.choices.quantile import balancing_prices, bias_towards_prices
from moeworks.ops.scoring import stable_top_k


def by_loops(scores, prices, top_k, valid) -> list[float]:
    """A token's price is its (K+1)-th best score less prices, an expert's the (C+1)-th best margin."""
    rows = [row for row, ok in zip(scores.tolist(), valid, strict=True) if ok]
    experts, found = len(prices), []
    margins = []
    for row in rows:
        less = sorted((s - p for s, p in zip(row, prices, strict=True)), reverse=True)
        margins.append([s - less[top_k] for s in row])
    capacity = math.ceil(len(rows) * top_k / experts - 1e-9)
    for e in range(experts):
        column = sorted((m[e] for m in margins), reverse=True)
        found.append(column[min(capacity, len(column) - 1)])
    return found


@given(st.integers(0, 2**31), st.integers(2, 6), st.data())
def test_as_the_loop(seed, experts, data):
    top_k = data.draw(st.integers(1, experts - 1))
    valid = data.draw(st.lists(st.booleans(), min_size=1, max_size=10).filter(any))
    torch.manual_seed(seed)
    scores = torch.rand(len(valid), experts, dtype=torch.float64)
    prices = torch.rand(experts, dtype=torch.float64)
    got = balancing_prices(scores, prices, top_k, torch.tensor(valid))
    assert got.tolist() == pytest.approx(by_loops(scores, prices.tolist(), top_k, valid), abs=1e-12)


def test_it_balances_and_nearly_reaches_the_best_sum():
    torch.manual_seed(0)
    scores = (torch.randn(512, 16) + 1.5 * torch.randn(16)).softmax(dim=1)
    config = BalanceConfig(bias_rule="quantile", bias_rate=0.3, bias_recentre=True)
    bias = torch.zeros(16)
    for _ in range(60):
        bias = bias_towards_prices(bias, balancing_prices(scores, -bias, 2, None), config)
    chosen = stable_top_k(scores + bias, 2)
    loads = chosen.flatten().bincount(minlength=16)
    assert stable_top_k(scores, 2).flatten().bincount(minlength=16).max() > 120
    assert loads.max() / 64 - 1 < 0.1
    best = scores[assign(scores, 2)].sum()
    assert scores.gather(1, chosen).sum() / best == pytest.approx(1.0, abs=0.02)
    assert bias.mean().item() == pytest.approx(0.0, abs=1e-6)


def test_without_tokens_or_a_choice_prices_are_0():
    scores = torch.rand(3, 4)
    assert balancing_prices(scores, torch.ones(4), 2, torch.zeros(3, dtype=torch.bool)).tolist() == [0] * 4
    assert balancing_prices(scores, torch.ones(4), 4, None).tolist() == [0] * 4
