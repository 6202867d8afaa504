import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.config import RopeConfig
from moeworks.errors import ConfigError
from moeworks.layers.rope import (
    apply_rope,
    attention_factor,
    rope_angles,
    rope_frequencies,
    rope_table,
    yarn_mscale,
)


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


def test_neighbours_pair_in_the_interleaved_style():
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0, 1, 0] = 1
    turned = apply_rope(x, rope_table(2, 4, 10_000.0), "interleaved")[0, 0, 1]
    torch.testing.assert_close(turned, torch.tensor([math.cos(1), math.sin(1), 0.0, 0.0]))


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_values_beyond_the_table_stay(style):
    x = torch.randn(2, 3, 5, 10)
    turned = apply_rope(x, rope_table(5, 6, 100.0), style)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert not torch.equal(turned[:, :, 1:, :6], x[:, :, 1:, :6])


def test_scalings_stretch_slow_frequencies_and_leave_fast_ones():
    plain = rope_frequencies(10_000.0, RopeConfig(), 32)
    common = dict(factor=8.0, original_max_seq_len=512)
    for scaling in ("yarn", "llama3"):
        scaled = rope_frequencies(10_000.0, RopeConfig(scaling=scaling, **common), 32)
        assert scaled[0] == plain[0]
        assert scaled[-1] == pytest.approx(plain[-1] / 8)
        assert all(p / 8 - 1e-15 <= s <= p for s, p in zip(scaled, plain, strict=True))
    assert rope_frequencies(10_000.0, RopeConfig(scaling="linear", factor=8.0), 32) == tuple(
        p / 8 for p in plain
    )


def test_ntk_alpha_raises_the_base():
    scaled = rope_frequencies(10_000.0, RopeConfig(scaling="ntk_alpha", factor=1000.0), 32)
    assert scaled == rope_frequencies(10_000.0 * 1000.0 ** (32 / 30), RopeConfig(), 32)


def test_longrope_changes_its_factors_with_the_length():
    rope = RopeConfig(
        scaling="longrope",
        original_max_seq_len=16,
        factor=4.0,
        short_factors=(1.0, 2.0),
        long_factors=(4.0, 8.0),
    )
    places = torch.arange(5)
    short, long = (rope_angles(places, 100.0, rope, 4, longest=n) for n in (16, 17))
    assert not torch.allclose(short, long)
    assert attention_factor(rope) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    with pytest.raises(ConfigError, match=r"rope\.long_factors = 2: must hold 3"):
        rope_angles(places, 100.0, rope, 6)


def test_yarns_temperature():
    assert yarn_mscale(1.0) == 1.0 == yarn_mscale(0.5)
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1 + 0.0707 * math.log(40))
    rope = RopeConfig(
        scaling="yarn", factor=40.0, original_max_seq_len=4096, mscale=0.707, mscale_all_dim=0.707
    )
    assert attention_factor(rope) == 1.0
    assert attention_factor(RopeConfig(scaling="yarn", factor=40.0, original_max_seq_len=4096)) > 1.3
    assert (
        attention_factor(RopeConfig(scaling="yarn", factor=4, original_max_seq_len=8, attention_factor=2))
        == 2
    )
    assert attention_factor(RopeConfig()) == 1.0


def test_rows_may_start_at_different_positions():
    positions = torch.tensor([[[0, 1, 2]], [[5, 6, 7]]])
    table = rope_angles(positions, 100.0, RopeConfig(), 8)
    x = torch.randn(2, 3, 3, 8)
    whole = rope_table(8, 8, 100.0)
    want = torch.stack([apply_rope(x[0], whole[:, :3]), apply_rope(x[1], whole[:, 5:])])
    torch.testing.assert_close(apply_rope(x, table), want)


def test_angles_of_a_float64_model_are_not_rounded_to_float32():
    positions = torch.arange(5, 40)
    exact = rope_angles(positions, 100.0, RopeConfig(), 8, dtype=torch.float64)
    radians = positions.double()[:, None] * 100.0 ** (-torch.arange(0, 8, 2).double() / 8)
    torch.testing.assert_close(exact, torch.stack([radians.cos(), radians.sin()]), rtol=1e-14, atol=1e-14)
    assert torch.equal(exact.float(), rope_angles(positions, 100.0, RopeConfig(), 8))
