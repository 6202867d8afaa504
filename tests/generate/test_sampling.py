"""The next token: temperature, top_p, top_k."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.generate import SamplingConfig
from moeworks.generate.sampling import sample

PROBS = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05])


def draws(number: int, **options) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [sample(PROBS.log(), SamplingConfig(**options), generator) for _ in range(number)]


def test_temperature_0_takes_the_most_probable_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample(PROBS.log(), SamplingConfig(temperature=0), generator) == 1
    assert torch.equal(generator.get_state(), before)


def test_frequencies_are_the_probabilities():
    counts = torch.bincount(torch.tensor(draws(4000, temperature=1)), minlength=5)
    torch.testing.assert_close(counts / 4000, PROBS, atol=0.03, rtol=0)


def test_temperature_sharpens():
    counts = torch.bincount(torch.tensor(draws(4000, temperature=0.5)), minlength=5)
    torch.testing.assert_close(counts / 4000, PROBS.square() / PROBS.square().sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("k", "kept"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 2, 3}), (5, {*range(5)}), (99, {*range(5)})]
)
def test_top_k_keeps_the_k_most_probable(k, kept):
    assert set(draws(500, temperature=1, top_k=k)) == kept


@pytest.mark.parametrize(
    ("p", "kept"), [(1e-9, {1}), (0.39, {1}), (0.41, {1, 3}), (0.66, {1, 2, 3}), (1.0, {*range(5)})]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    assert set(draws(500, temperature=1, top_p=p)) == kept


def test_top_p_is_taken_of_what_top_k_leaves():
    """Of 0.4 and 0.25 the first has 0.62."""
    assert set(draws(200, temperature=1, top_k=2, top_p=0.6)) == {1}
    assert set(draws(200, temperature=1, top_k=2, top_p=0.63)) == {1, 3}


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.floats(0.05, 4),
    st.floats(0.01, 1),
    st.one_of(st.none(), st.integers(1, 15)),
    st.integers(0, 2**31),
)
def test_a_token_is_always_drawn_and_a_seed_repeats_it(logits, temperature, top_p, top_k, seed):
    config = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k)
    values = torch.tensor(logits)
    first, second = (sample(values, config, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first == second
    assert 0 <= first < len(logits)
    assert (values > values[first]).sum() < (top_k or len(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype(dtype):
    assert sample(PROBS.log().to(dtype), SamplingConfig(temperature=0), torch.Generator()) == 1
