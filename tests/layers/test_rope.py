import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.layers.rope import apply_rope, rope_table


def test_the_table_holds_cosines_and_sines():
    table = rope_table(5, 4, 100.0)
    assert table.shape == (2, 5, 2)
    assert table.dtype == torch.float32
    for position in range(5):
        for i, frequency in enumerate((1.0, 0.1)):
            assert table[0, position, i] == pytest.approx(math.cos(position * frequency), abs=1e-7)
            assert table[1, position, i] == pytest.approx(math.sin(position * frequency), abs=1e-7)


def test_far_positions_are_exact():
    # In float32 the angle 100000 alone is off by up to 0.004.
    table = rope_table(100_001, 2, 10_000.0)
    assert table[0, -1, 0].item() == pytest.approx(math.cos(100_000), abs=1e-7)


def test_position_0_changes_nothing():
    x = torch.randn(1, 2, 1, 8)
    assert torch.equal(apply_rope(x, rope_table(1, 8, 10_000.0)), x)


def test_the_first_half_of_a_head_pairs_the_second():
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0, 1, 0] = 1
    turned = apply_rope(x, rope_table(2, 4, 10_000.0))[0, 0, 1]
    torch.testing.assert_close(turned, torch.tensor([math.cos(1), 0.0, math.sin(1), 0.0]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), i=st.integers(0, 50), j=st.integers(0, 50), shift=st.integers(0, 900))
def test_scores_depend_on_the_distance_alone(seed, i, j, shift):
    torch.manual_seed(seed)
    table = rope_table(1000, 8, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        turned_q, turned_k = apply_rope(q, table[:, [query_at]]), apply_rope(k, table[:, [key_at]])
        return (turned_q * turned_k).sum()

    # The table is in float32: eps 6e-8, times sums of a few terms around 1 to 10.
    torch.testing.assert_close(score(i + shift, j + shift), score(i, j), rtol=0, atol=1e-5)


def test_lengths_are_kept():
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    turned = apply_rope(x, rope_table(7, 8, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


def test_the_dtype_is_kept():
    assert apply_rope(torch.randn(1, 1, 3, 4).bfloat16(), rope_table(3, 4, 10.0)).dtype == torch.bfloat16
