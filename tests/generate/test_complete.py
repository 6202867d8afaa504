"""Text to text: stops, pieces, batches, drafts."""

from itertools import pairwise

import pytest
import torch
from random_layers import randomise_
from tiny_chain import chain_model, spaced_tokenizer
from tiny_published import DEEPSEEK
from tiny_tokenizers import BOS, VOCAB, byte_backend, write_folder

from moeworks import Decoder, load
from moeworks.config import CapacityConfig, ExpertsConfig, GQAConfig, ModelConfig, RouterConfig
from moeworks.config.generate import GenerationConfig, SamplingConfig
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import ConfigError
from moeworks.evaluate.scoring import Row, score_rows
from moeworks.families import from_hf
from moeworks.generate.complete import Completion, complete, stream
from moeworks.generate.loop import generate, generate_batch
from moeworks.generate.speculative import Acceptance

GREEDY = SamplingConfig(temperature=0)
WARM = SamplingConfig(temperature=1.5)
PROMPTS = [[BOS, *text] for text in (b"abc", b"de f", b"", b"\xc3\xa9 and so on")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete") / "m"
    write_folder(folder)
    return load(folder).double(), tokenizer_of(folder, VOCAB)


def whole(parts, prompt, config, seed=0) -> Completion:
    found = []
    pieces = list(stream(*parts, prompt, config, seed=seed, done=found.append))
    assert "".join(pieces) == found[0].text
    return found[0]


def test_the_text_is_that_of_the_tokens(parts):
    model, tokenizer = parts
    config = GenerationConfig(max_new_tokens=30, sampling=WARM)
    ids = list(generate(model, PROMPTS[0], 30, sampling=WARM, seed=3, stop_ids=tokenizer.stop_ids))
    found = whole(parts, PROMPTS[0], config, seed=3)
    assert (found.text, list(found.ids), found.prompt_tokens) == (tokenizer.decode(ids), ids, 4)
    assert found.reason == ("length" if len(ids) == 30 else "stop")


def test_a_batch_is_its_texts(parts):
    plain = GenerationConfig(max_new_tokens=20, sampling=WARM)
    alone = [whole(parts, p, plain, seed=i) for i, p in enumerate(PROMPTS)]
    stop = next(c.text[2] for c in alone if len(c.text) > 3)
    for config in (plain, GenerationConfig(max_new_tokens=20, sampling=WARM, stop=(stop,))):
        want = [whole(parts, p, config, seed=i) for i, p in enumerate(PROMPTS)]
        assert complete(*parts, PROMPTS, config) == want
        assert complete(*parts, PROMPTS[::-1], config, seeds=[3, 2, 1, 0]) == want[::-1]
    assert all(stop not in completion.text for completion in want)
    assert complete(*parts, [], plain) == []


def test_a_stop_string_ends_the_text_before_it(parts):
    free = whole(parts, PROMPTS[1], GenerationConfig(max_new_tokens=25, sampling=WARM), seed=1)
    stop = free.text[3:5]
    found = whole(parts, PROMPTS[1], GenerationConfig(max_new_tokens=25, sampling=WARM, stop=(stop,)), seed=1)
    assert found.text == free.text[: free.text.index(stop)] and found.reason == "stop"
    assert len(found.ids) <= len(free.ids)


def test_no_token_at_all(parts):
    found = whole(parts, PROMPTS[0], GenerationConfig(max_new_tokens=0))
    assert (found.text, found.ids) == ("", ())


def test_drafts_write_the_same_text():
    torch.manual_seed(0)
    config = from_hf(DEEPSEEK | dict(vocab_size=VOCAB, max_position_embeddings=64))
    model = randomise_(Decoder(config).double(), std=0.3).eval()
    tokenizer = ModelTokenizer(byte_backend(), (BOS,))
    config = GenerationConfig(max_new_tokens=30, sampling=GREEDY, prefill_chunk=2)
    acceptance = Acceptance()
    drafted = "".join(stream(model, tokenizer, PROMPTS[0], config, acceptance=acceptance))
    assert drafted == "".join(stream(model, tokenizer, PROMPTS[0], config))
    assert acceptance.drafted > 0
    with pytest.raises(ConfigError, match="drafts need temperature 0"):
        list(stream(model, tokenizer, PROMPTS[0], GenerationConfig(), acceptance=acceptance))


def test_a_prompt_longer_than_the_context(parts):
    config = GenerationConfig(max_new_tokens=3)
    with pytest.raises(ConfigError, match="prompt = 65: tokens exceed the model's context of 64"):
        list(stream(*parts, [BOS] * 65, config))
    with pytest.raises(ConfigError, match="prompt = 65"):
        complete(*parts, [[BOS], [BOS] * 65], config)


# "Hello world again😀!" in tokens with spaces at the start of words, and bytes for what has no token.
WORDS = ["▁Hello", "▁world", "▁again", "!", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
HELLO, WORLD, AGAIN, MARK = 3, 4, 5, 6
SENTENCE = [HELLO, WORLD, AGAIN, 7, 8, 9, 10, MARK]
END = 2


@pytest.fixture(scope="module")
def spaced():
    """A model that says the sentence, with a tokenizer that drops the space at the start of a text."""
    following = dict(pairwise([1, *SENTENCE, END]))
    return chain_model(11, following), ModelTokenizer(spaced_tokenizer(WORDS), (1,), (END,))


def says(spaced, prompt: list[int], *stop: str) -> str:
    """What follows, which is the same piece by piece, at once, and in a batch."""
    config = GenerationConfig(max_new_tokens=9, sampling=GREEDY, stop=stop)
    text = whole(spaced, prompt, config).text
    in_batch = complete(*spaced, [prompt, [1, HELLO, WORLD], prompt], config)
    assert [in_batch[0].text, in_batch[2].text] == [text, text]
    assert [complete(*spaced, [prompt], config)[0].text] == [text]
    return text


def test_the_space_before_the_first_word(spaced):
    assert says(spaced, [1, HELLO]) == " world again😀!"
    assert says(spaced, [1, HELLO, WORLD, AGAIN, 7, 8]) == "😀!"
    assert says(spaced, [1]) == "Hello world again😀!"  # the start of the text: no space


def test_stop_strings_see_the_space(spaced):
    assert says(spaced, [1, HELLO], " world") == ""
    assert says(spaced, [1, HELLO], "ld ag") == " wor"  # over two tokens
    assert says(spaced, [1, HELLO], "😀") == " world again"
    assert says(spaced, [1, HELLO], "n😀!") == " world agai"


def test_a_stop_string_that_begins_in_the_prompt_does_not_count(spaced):
    assert says(spaced, [1, HELLO], "lo wor") == " world again😀!"


def test_experts_of_limited_capacity_serve_one_text_at_a_time():
    """In one pass, texts would take each other's places; alone, each is what it always is."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCAB, d_model=16, num_layers=2, max_seq_len=32,
        attention=GQAConfig(num_heads=2, num_kv_heads=2), router=RouterConfig(num_experts=4, top_k=2),
        experts=ExpertsConfig(d_expert=8), capacity=CapacityConfig(eval_capacity_factor=0.5),
    )  # fmt: skip
    model = randomise_(Decoder(config).double(), std=0.5).eval()
    tokenizer = ModelTokenizer(byte_backend(), (BOS,))
    config = GenerationConfig(max_new_tokens=6, sampling=WARM)
    alone = [whole((model, tokenizer), p, config, seed=i) for i, p in enumerate(PROMPTS)]
    assert complete(model, tokenizer, PROMPTS, config) == alone
    assert complete(model, tokenizer, PROMPTS[::-1], config, seeds=[3, 2, 1, 0]) == alone[::-1]
    with pytest.raises(ConfigError, match=r"eval_capacity_factor = 0.5: .* continue them one at a time"):
        list(generate_batch(model, PROMPTS, 2))
    rows = [Row([1, 2, 3, 4, 5, 6], 5), Row([9, 8, 7, 6, 5, 4], 5), Row([1, 1, 1, 1], 3)]
    scores = dict(score_rows(model, rows))
    for number, row in enumerate(rows):
        assert scores[number] == dict(score_rows(model, [row]))[0]
