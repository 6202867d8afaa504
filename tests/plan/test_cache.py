import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import tiny_config

from moeworks import Decoder
from moeworks.config.count import count_cache_bytes, count_kv_bytes
from moeworks.families import BY_PRESET, published
from moeworks.models.cache import KVCache, StateCache
from moeworks.plan.cache import cache_bytes, cache_read_bytes, divisible_heads, visible_keys

MODELS = {name: published(name) for name in BY_PRESET}
NAMES = st.sampled_from(sorted(MODELS))
CONTEXTS = st.integers(1, 200_000)


@given(NAMES, CONTEXTS)
def test_on_one_device_it_is_the_whole_cache(name, context):
    assert cache_bytes(MODELS[name], context, 2) == count_cache_bytes(MODELS[name], context, 2)


@given(NAMES, CONTEXTS, CONTEXTS)
def test_grows_with_the_context(name, context, more):
    model = MODELS[name]
    assert cache_bytes(model, context + more, 2) >= cache_bytes(model, context, 2)
    assert cache_read_bytes(model, context + more, 2) >= cache_read_bytes(model, context, 2)


@given(NAMES, CONTEXTS, st.sampled_from([1, 2, 4, 8, 16, 64]))
def test_ranks_hold_at_least_their_part_and_at_most_all(name, context, ranks):
    model, whole = MODELS[name], cache_bytes(MODELS[name], context, 2)
    assert whole <= ranks * cache_bytes(model, context, 2, ranks) + ranks
    assert cache_bytes(model, context, 2, ranks) <= whole


@given(NAMES, CONTEXTS)
def test_a_step_reads_at_most_what_is_kept(name, context):
    model = MODELS[name]
    read, kept = cache_read_bytes(model, context, 2), count_cache_bytes(model, context, 2)
    assert read <= kept + 1
    if getattr(model.attention, "indexer", None) is None:
        assert read == kept


def test_latents_lie_on_every_device_and_heads_are_shared_out():
    v3, mixtral = published("deepseek-v3"), published("mixtral-8x7b")
    assert cache_bytes(v3, 100, 2, 8) == 100 * 70_272
    assert cache_bytes(mixtral, 100, 2, 4) == 100 * count_kv_bytes(mixtral, 2) // 4
    assert cache_bytes(mixtral, 100, 2, 32) == 100 * count_kv_bytes(mixtral, 2) // 8  # 8 heads, 32 devices


def test_sparse_attention_reads_chosen_latents_and_all_of_the_scorers_keys():
    model, context = published("deepseek-v3.2"), 100_000
    assert cache_read_bytes(model, context, 2) == 61 * 2 * (2048 * 576 + context * 128)


def test_windows_bound_what_is_read():
    model = published("gpt-oss-20b")
    assert cache_read_bytes(model, 10_000, 2) == 12 * 2 * 1024 * (128 + 10_000)


def test_numbers_of_tensor_parallel_devices():
    assert divisible_heads(published("deepseek-v3")) == 128
    assert divisible_heads(published("qwen3-next-80b-a3b")) == 16
    assert divisible_heads(published("llama-4-scout")) == 40
    assert divisible_heads(published("jetmoe-8b")) == 16


@given(st.integers(0, 40), st.integers(1, 50))
def test_visible_keys_are_those_of_the_mask(length, limit):
    pairs = [(q, k) for q in range(length) for k in range(q + 1)]
    assert visible_keys(length) == len(pairs)
    assert visible_keys(length, window=limit) == sum(q - k < limit for q, k in pairs)
    assert visible_keys(length, chunk=limit) == sum(q // limit == k // limit for q, k in pairs)


@pytest.mark.parametrize(("name", "kilobytes"), [("deepseek-v3", 70.272), ("llama-3-8b", 131.072)])
def test_published_cache_sizes(name, kilobytes):
    """DeepSeek-V3: arXiv:2505.09343, table 1. Llama 3 8B: 32 layers x 8 heads x 128, keys and values."""
    assert count_kv_bytes(published(name), 2) == kilobytes * 1000


def test_states_of_recurrences_keep_their_size_whatever_the_type_of_the_cache():
    """Qwen3-Next's 36 states are [32, 128, 128] in float32, 75.5 MB a sequence, and 3 inputs in 2 bytes."""
    model = published("qwen3-next-80b-a3b")
    states = 36 * (4 * 32 * 128 * 128 + 2 * 3 * (2 * 16 * 128 + 32 * 128))
    keys_and_values = 12 * 1000 * 2 * 2 * 256
    for width in (0.5, 1, 2, 4):
        assert cache_bytes(model, 1000, width) == states + width * keys_and_values
    assert cache_bytes(model, 1000, 1, ranks=2) == (states + keys_and_values) / 2


def test_states_are_those_that_a_model_in_bfloat16_holds():
    model = Decoder(tiny_config("qwen3_next")).to(torch.bfloat16).eval()
    cache = KVCache(model.config, 1, 9, dtype=torch.bfloat16)
    with torch.no_grad():
        model(torch.ones(1, 9, dtype=torch.long), cache=cache)
    held = [layer for layer in cache.layers if isinstance(layer, StateCache)]
    assert len(held) == 3
    states = sum(tensor.nbytes for layer in held for tensor in layer.held())
    assert states == cache_bytes(model.config, 9, 0)
