import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config.count import count_flops, count_parameters
from moeworks.families import BY_PRESET, published
from moeworks.plan.compute import causal_training_flops, expert_flops, prefill_flops

MODELS = {name: published(name) for name in BY_PRESET}
NAMES = st.sampled_from(sorted(MODELS))


@pytest.mark.parametrize(("name", "gigaflops"), [("deepseek-v3", 250), ("deepseek-v2", 155)])
def test_published_training_cost(name, gigaflops):
    """arXiv:2505.09343, table 2: training GFLOPS per token at length 4096, causal."""
    assert causal_training_flops(published(name), 4096) == pytest.approx(gigaflops * 1e9, rel=0.005)


def test_mixtral_by_hand():
    model, length = published("mixtral-8x7b"), 100
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    layer = attention + 8 * 4096 + 2 * 3 * 4096 * 14_336
    pairs = length * (length + 1) // 2
    hand = 2 * (32 * (length * layer + pairs * 2 * 4096) + 32_000 * 4096)
    assert prefill_flops(model, length) == hand


@given(NAMES, st.integers(1, 50_000))
def test_causal_is_between_half_and_all(name, length):
    model = MODELS[name]
    every = count_flops(model, length, training=True)
    causal = causal_training_flops(model, length)
    assert every / 2 <= causal <= every * (1 + 1e-12)


@given(NAMES, st.integers(1, 50_000), st.integers(1, 50_000))
def test_a_longer_prompt_costs_more(name, length, more):
    assert prefill_flops(MODELS[name], length + more) > prefill_flops(MODELS[name], length)


def test_one_token_sees_itself():
    model = published("deepseek-v3")
    assert prefill_flops(model, 1) == count_flops(model, 1, training=False)
    assert 3 * prefill_flops(model, 1) == causal_training_flops(model, 1)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "olmoe-1b-7b"])
def test_flops_of_the_experts_are_two_per_active_parameter(name):
    model = published(name)
    assert expert_flops(model) == 2 * count_parameters(model).active_experts
