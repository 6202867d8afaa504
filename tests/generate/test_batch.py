"""Batches, pieces of prompts and seeds: every text is the one that its prompt gives alone."""

from dataclasses import replace

import pytest
import torch
from random_layers import randomise_
from tiny_families import tiny_config

from moeworks.config.generate import SamplingConfig
from moeworks.errors import ConfigError
from moeworks.generate.loop import generate, generate_batch
from moeworks.models.decoder import Decoder

GREEDY = SamplingConfig(temperature=0)
WARM = SamplingConfig(temperature=1.0, top_p=0.9, repetition_penalty=1.1)
FAMILIES = [
    "llama",
    "mixtral_window",
    "deepseek_v3",
    "deepseek_v32",
    "qwen3_next",
    "gpt_oss",
    "llama4",
    "jetmoe",
]
PROMPTS = [[3], [5, 9, 17, 2, 8, 33, 21, 40, 11, 6, 12], [7, 7, 1, 30], list(range(20, 38))]


def make(name: str, seed: int = 0, **options) -> Decoder:
    torch.manual_seed(seed)
    config = tiny_config(name)
    return randomise_(Decoder(replace(config, **options)).double(), std=0.3).eval()


def columns(batch) -> list[list[int]]:
    """The tokens of each text."""
    rows = list(batch)
    return [[token for token in column if token is not None] for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_gives_what_each_prompt_gives_alone(name, sampling):
    model = make(name)
    together = columns(generate_batch(model, PROMPTS, 12, sampling=sampling, seeds=[4, 5, 6, 7]))
    alone = [list(generate(model, p, 12, sampling=sampling, seed=4 + i)) for i, p in enumerate(PROMPTS)]
    assert together == alone


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_prompts_in_pieces(name, chunk):
    model = make(name)
    whole = columns(generate_batch(model, PROMPTS[1:], 6, sampling=GREEDY))
    assert columns(generate_batch(model, PROMPTS[1:], 6, sampling=GREEDY, prefill_chunk=chunk)) == whole


def test_a_text_does_not_depend_on_its_neighbours():
    model = make("mixtral_window")
    first = columns(generate_batch(model, PROMPTS[:2], 8, sampling=WARM, seeds=[1, 2]))
    turned = columns(generate_batch(model, [PROMPTS[3], PROMPTS[1]], 8, sampling=WARM, seeds=[9, 2]))
    assert first[1] == turned[1]


def test_a_seed_repeats_a_text_and_another_gives_another():
    model = make("llama")
    texts = [
        list(generate(model, [3, 4], 20, sampling=SamplingConfig(temperature=2), seed=s)) for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_one_text_ends_and_the_others_go_on():
    model = make("mixtral_window")
    alone = [list(generate(model, p, 10, sampling=GREEDY)) for p in PROMPTS]
    stop = alone[0][3]
    want = [text[: text.index(stop)] if stop in text else text for text in alone]
    assert columns(generate_batch(model, PROMPTS, 10, sampling=GREEDY, stop_ids=[stop])) == want


def test_texts_that_outgrow_the_context():
    """Each forgets when its own window is full, though padding fills the cache of a short one sooner."""
    model = make("llama", max_seq_len=20)
    prompts = [[3, 8], list(range(2, 19)), [5] * 9]
    together = columns(generate_batch(model, prompts, 45, sampling=GREEDY))
    assert together == [list(generate(model, p, 45, sampling=GREEDY)) for p in prompts]


def test_the_outside_can_end_a_text():
    model, ended = make("llama"), [False, False]
    rows = []
    for row in generate_batch(model, PROMPTS[:2], 6, sampling=GREEDY, ended=ended):
        rows.append(row)
        ended[0] = len(rows) >= 2
    assert [row[0] is None for row in rows] == [False, False, True, True, True, True]
    assert all(row[1] is not None for row in rows)


def test_what_cannot_be_is_refused():
    model = make("llama")
    with pytest.raises(ConfigError, match=r"prompt_ids = \[\]: there must be a token"):
        list(generate(model, [], 3))
    with pytest.raises(ConfigError, match=r"prompt_ids = 97: exceeds the model's vocabulary of 97"):
        list(generate(model, [97], 3))
    with pytest.raises(ConfigError, match=r"prompt_ids = -1: is no token id"):
        list(generate(model, [-1], 3))
    with pytest.raises(ConfigError, match="prefill_chunk = 0"):
        list(generate(model, [1], 3, prefill_chunk=0))
