"""Top-p and thresholds, token by token."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.ops.choices.numbers import choose_above, choose_top_p


def experts_of(ids_TK: torch.Tensor, num_experts: int) -> list[list[int]]:
    for row in ids_TK.tolist():
        filled = [i for i in row if i < num_experts]
        assert row == filled + [num_experts] * (len(row) - len(filled))  # empty slots come last
    return [[i for i in row if i < num_experts] for row in ids_TK.tolist()]


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.01, 1.0), st.data())
def test_top_p_is_the_fewest_that_reach_p(seed, experts, p, data):
    most = data.draw(st.integers(1, experts))
    torch.manual_seed(seed)
    probs = torch.rand(7, experts, dtype=torch.float64) + 1e-3
    for row, chosen in zip(probs, experts_of(choose_top_p(probs, p, most), experts), strict=True):
        share = (row / row.sum()).tolist()
        ordered = sorted(range(experts), key=lambda e: -share[e])
        count, total = 0, 0.0
        while count < most and (count == 0 or total < p):
            total += share[ordered[count]]
            count += 1
        assert chosen == ordered[:count]


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0, 1), st.data())
def test_above_a_threshold(seed, experts, threshold, data):
    most = data.draw(st.integers(1, experts))
    least = data.draw(st.integers(0, most))
    torch.manual_seed(seed)
    scores = torch.rand(7, experts, dtype=torch.float64)
    got = experts_of(choose_above(scores, threshold, least, most), experts)
    for row, chosen in zip(scores.tolist(), got, strict=True):
        ordered = sorted(range(experts), key=lambda e: -row[e])
        above = [e for e in ordered if row[e] >= threshold]
        assert chosen == ordered[: max(least, min(len(above), most))]
