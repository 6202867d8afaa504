"""Tokenizers of published checkpoints and of runs: start, end, chat, and what the makers recommend."""

import json

import pytest
from tiny_tokenizers import BOS, EOS, TEMPLATE, VOCAB, write_folder

from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import CheckpointError, ConfigError, DataError


def of(folder, **options) -> ModelTokenizer:
    write_folder(folder, **options)
    return tokenizer_of(folder, VOCAB)


def test_text_and_back(tmp_path):
    tokenizer = of(tmp_path / "m")
    assert tokenizer.encode("hé") == list("hé".encode())
    assert tokenizer.decode(tokenizer.encode("hé 😀")) == "hé 😀"
    assert tokenizer.encode_prompt("a") == [BOS, 97]
    assert tokenizer.encode_prompt("") == [BOS]


def test_special_tokens_in_a_text_are_text_unless_a_template_wrote_them(tmp_path):
    tokenizer = of(tmp_path / "m")
    assert EOS not in tokenizer.encode("a<eos>")
    assert tokenizer.encode_marked("a<eos>") == [97, EOS]
    assert tokenizer.encode("a<eos>") == list(b"a<eos>")


def test_a_conversation(tmp_path):
    tokenizer = of(tmp_path / "m")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.encode_chat([{"role": "user", "content": "x"}]) == [BOS, *b"[user]x", EOS]


@pytest.mark.parametrize(
    ("framed", "config", "start"),
    [
        (True, {}, (BOS,)),
        (True, {"add_bos_token": False}, ()),
        (False, {"add_bos_token": True}, (BOS,)),
        (False, {}, ()),
        (False, {"add_bos_token": True, "bos_token": None}, ()),
    ],
)
def test_what_a_text_starts_with(tmp_path, framed, config, start):
    tokenizer = of(tmp_path / "m", framed=framed, tokenizer=config)
    assert tokenizer.start_ids == start
    assert tokenizer.prefix_ids == (start or (EOS,))
    assert tokenizer.encode_prompt("") == list(tokenizer.prefix_ids)


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        ({}, None, (EOS,)),
        ({"eos_token_id": 256}, None, (EOS, 256)),
        ({"eos_token_id": 256}, {"eos_token_id": [255, EOS]}, (EOS, 255)),
        ({}, {"eos_token_id": 7}, (EOS, 7)),
    ],
)
def test_what_ends_a_text(tmp_path, config, generation, stops):
    assert of(tmp_path / "m", config=config, generation=generation).stop_ids == stops


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        (None, {}),
        ({"do_sample": True, "top_p": 0.9, "top_k": 0}, {"top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"top_k": 20, "min_p": 0.1, "other": 1}, {"top_k": 20, "min_p": 0.1}),
        ({"repetition_penalty": 1.1, "temperature": 0.6}, {"repetition_penalty": 1.1, "temperature": 0.6}),
    ],
)  # fmt: skip
def test_what_the_makers_recommend(tmp_path, generation, sampling):
    assert of(tmp_path / "m", generation=generation).sampling == sampling


def test_a_template_in_a_file_of_its_own_and_named_ones(tmp_path):
    write_folder(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("file")
    assert tokenizer_of(tmp_path / "m", VOCAB).chat_template == "file"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert of(tmp_path / "n", tokenizer={"chat_template": named}).chat_template == "d"


def test_what_is_missing_or_bad_is_an_error(tmp_path):
    folder = tmp_path / "m"
    write_folder(folder, tokenizer={"chat_template": None})
    with pytest.raises(ConfigError, match="chat: this model comes without a chat template"):
        tokenizer_of(folder, VOCAB).encode_chat([])
    with pytest.raises(CheckpointError, match="has 259 tokens, the model only 100"):
        tokenizer_of(folder, 100)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer.json"):
        tokenizer_of(folder, VOCAB)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer.json: missing, and .*AutoTokenizer"):
        tokenizer_of(folder, VOCAB)
    with pytest.raises(CheckpointError, match="neither a run"):
        tokenizer_of(tmp_path / "nowhere", VOCAB)


def test_advice_that_cannot_be_followed_stands_in_nobodys_way(tmp_path):
    """Whoever generates checks it; who evaluates or traces does not need it."""
    folder = tmp_path / "m"
    write_folder(folder)
    file = folder / "generation_config.json"
    for written, advice in (
        ({"top_k": -1, "temperature": 0.6}, {"temperature": 0.6}),
        ({"top_k": 0, "top_p": 3}, {}),
        ({"top_k": -5}, {"top_k": -5}),
        ({"top_p": "much"}, {"top_p": "much"}),
    ):
        file.write_text(json.dumps(written))
        assert tokenizer_of(folder, VOCAB).sampling == advice
