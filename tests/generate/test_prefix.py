"""Remembered prompts: the same text, and the same routing, as without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import randomise_
from tiny_families import tiny_config

from moeworks.config.generate import SamplingConfig
from moeworks.errors import ConfigError
from moeworks.generate.loop import generate, generate_batch
from moeworks.generate.prefix import PrefixCache, common_start, worth_sharing
from moeworks.models.decoder import Decoder

GREEDY = SamplingConfig(temperature=0)
TEXT = [5, 9, 17, 2, 8, 33, 21, 40, 11, 6, 12, 50, 51, 52]


def make(name: str) -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(tiny_config(name)).double(), std=0.3).eval()


def assert_as_without(model: Decoder, prefix: PrefixCache, prompt: list[int]) -> int:
    """The same logits, routings and text; returns how many tokens were remembered."""
    read = prefix.read(prompt, len(prompt) + 8, 5)
    with torch.no_grad():
        want = model(torch.tensor([prompt]))
    torch.testing.assert_close(read.logits_V, want.logits_BLV[0, -1], rtol=1e-9, atol=1e-9)
    assert len(read.routings) == len(want.routings)
    for got, expected in zip(read.routings, want.routings, strict=True):
        assert torch.equal(got.expert_ids_TK, expected.expert_ids_TK)
        for mine, theirs in zip(got.tensors(), expected.tensors(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    text = list(generate(model, prompt, 6, sampling=GREEDY, prefix=prefix))
    assert text == list(generate(model, prompt, 6, sampling=GREEDY))
    return read.reused


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "deepseek_v32"])
def test_any_common_start_is_read_once(name):
    model = make(name)
    prefix = PrefixCache(model)
    assert assert_as_without(model, prefix, TEXT) == 0
    assert assert_as_without(model, prefix, [*TEXT[:9], 1, 2, 3]) == 9
    assert assert_as_without(model, prefix, [*TEXT, 60, 61]) == len(TEXT)
    assert assert_as_without(model, prefix, TEXT[:7]) == 6  # the last one again, for its logits
    assert assert_as_without(model, prefix, TEXT) == len(TEXT)
    assert assert_as_without(model, prefix, [90, 91]) == 0


@pytest.mark.parametrize("name", ["mixtral_window", "gpt_oss", "qwen3_next"])
def test_windows_and_recurrences_go_on_from_the_end(name):
    model = make(name)
    prefix = PrefixCache(model)
    assert assert_as_without(model, prefix, TEXT) == 0
    assert assert_as_without(model, prefix, [*TEXT, 60, 61]) == len(TEXT)
    assert assert_as_without(model, prefix, [*TEXT, 60, 61, 62]) == len(TEXT) + 2
    assert assert_as_without(model, prefix, TEXT) == len(TEXT)


MIXTRAL = make("mixtral")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(0, 20)
)
def test_any_order_of_prompts(prompts, max_tokens):
    prefix = PrefixCache(MIXTRAL, max_tokens)
    for prompt in prompts:
        assert_as_without(MIXTRAL, prefix, prompt)
        assert prefix.num_tokens <= max_tokens


def columns(batch) -> list[list[int]]:
    return [[token for token in column if token is not None] for column in zip(*batch, strict=True)]


ENDS = [[1], [60, 61, 62, 7, 3], [60, 4], [30] * 9]


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek_v3", "mixtral_window", "gpt_oss", "qwen3_next", "llama4"]
)
def test_a_batch_reads_what_its_prompts_share_once(name, chunk):
    model = make(name).float()
    prompts = [[*TEXT, *end] for end in ENDS]
    options = dict(sampling=GREEDY, prefill_chunk=chunk)
    plain = columns(list(generate_batch(model, prompts, 12, **options)))
    prefix = PrefixCache(model)
    assert columns(list(generate_batch(model, prompts, 12, **options, prefix=prefix))) == plain
    beyond = 1 if prefix._empty_cache(99).forgets else 0  # the third prompt goes on with the second's 60
    assert prefix.saved_tokens == 3 * len(TEXT) + beyond
    again = columns(list(generate_batch(model, prompts, 12, **options, prefix=prefix)))
    assert again == plain and prefix.saved_tokens >= 6 * len(TEXT)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 40),
)
def test_any_batch_of_prompts(start, ends, max_tokens):
    prompts = [start + end for end in ends]
    prefix = PrefixCache(MIXTRAL, max_tokens)
    batch = list(generate_batch(MIXTRAL, prompts, 5, sampling=GREEDY, prefix=prefix))
    assert batch == list(generate_batch(MIXTRAL, prompts, 5, sampling=GREEDY))
    assert 0 <= prefix.saved_tokens < sum(map(len, prompts)) or len(prompts) == 1
    assert all(prompt[: common_start(prompts)] == prompts[0][: common_start(prompts)] for prompt in prompts)


def test_texts_of_a_batch_that_outgrow_the_context():
    model = make("mixtral")
    prompts = [[*TEXT, 3], [*TEXT, 4, 5, 6]]
    count = model.config.max_seq_len + 5
    prefix = PrefixCache(model)
    batch = columns(list(generate_batch(model, prompts, count, sampling=GREEDY, prefix=prefix)))
    assert batch == columns(list(generate_batch(model, prompts, count, sampling=GREEDY)))


def test_sharing_is_worth_it_for_long_starts_and_many_prompts():
    assert not worth_sharing([[1] * 500])
    assert not worth_sharing([[1, 2, 3], [1, 2, 4]])
    assert worth_sharing([[1] * 100 + [2], [1] * 100 + [3]])
    assert worth_sharing([[1] * 40 + [end] for end in range(10)])
    assert not worth_sharing([[*range(100)], [*range(1, 101)]])


def test_the_latest_used_stay():
    model = make("mixtral")
    prefix = PrefixCache(model, max_tokens=6)
    for prompt in ([1, 1, 1], [2, 2, 2], [1, 1, 1], [3, 3, 3]):
        prefix.read(prompt, 8, 8)
    assert prefix.num_tokens == 6
    assert prefix.read([1, 1, 1], 8, 8).reused == 3
    assert prefix.read([2, 2, 2], 8, 8).reused == 0
    prefix.clear()
    assert prefix.num_tokens == 0


def test_generation_leaves_what_is_remembered_alone():
    model = make("mixtral_window")
    prefix = PrefixCache(model)
    texts = [list(generate(model, TEXT, 20, sampling=GREEDY, prefix=prefix)) for _ in range(3)]
    assert texts[0] == texts[1] == texts[2]


def test_what_cannot_be_is_refused():
    model = make("mixtral")
    with pytest.raises(ConfigError, match="is that of another model"):
        list(generate(make("mixtral"), TEXT, 2, prefix=PrefixCache(model)))
    with pytest.raises(ConfigError, match="max_tokens = -1"):
        PrefixCache(model, -1)
