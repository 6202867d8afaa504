import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from moeworks.data import Tokenizer, build_tokenizer, load_tokenizer
from moeworks.errors import DataError

CODE = [
    "def add(a, b):\n        return a + b\n\n",
    "class Thing:\n    def __init__(self):\n        self.value = 0x1234\n",
    "Grüße, мир, 世界: 'quoted' \"text\"\tand\ttabs\r\n",
] * 3
BYTES = build_tokenizer("bytes", 257, [])
BPE = build_tokenizer("bpe", 320, CODE)
both = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])


@both
@given(text=st.text(st.characters(codec="utf-8")) | st.text(" \t\r\n():=_.a1é", max_size=80))
def test_decoding_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_byte_tokenizer_numbers_bytes_by_their_value() -> None:
    text = "".join(map(chr, range(256))) + "世"
    assert BYTES.encode(text).tolist() == list(text.encode())
    assert (BYTES.vocab_size, BYTES.end_of_text_id) == (257, 256)


def test_bpe_has_the_wanted_size_or_less_when_the_text_has_no_more_pairs() -> None:
    assert (BPE.vocab_size, BPE.end_of_text_id) == (320, 0)
    assert build_tokenizer("bpe", 5000, ["ab"]).vocab_size == 258


def test_line_end_and_indentation_become_one_token() -> None:
    tokenizer = build_tokenizer("bpe", 400, CODE * 5)
    line = [tokenizer.decode([token]) for token in tokenizer.encode("):\n        return")]
    assert line == ["):\n       ", " return"]


def test_a_batch_is_its_texts_one_by_one() -> None:
    batch = BPE.encode_batch([*CODE[:3], ""])
    assert [ids.dtype for ids in batch] == [np.dtype(np.int64)] * 4
    for text, ids in zip([*CODE[:3], ""], batch, strict=True):
        np.testing.assert_array_equal(ids, BPE.encode(text))


@both
def test_a_spelled_out_end_of_text_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"
    assert tokenizer.decode([tokenizer.end_of_text_id]) == "<|endoftext|>"


def test_cut_characters_decode_to_replacements() -> None:
    assert BYTES.decode("é".encode()[:1]) == "\ufffd"
    assert BYTES.decode(np.array([65, 0xE4, 0xB8])) == "A\ufffd"
    assert BYTES.decode([]) == ""


@both
def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.vocab_size, again.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    text = "def f():\n    return '<|endoftext|>'\n"
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert len({BYTES.fingerprint, BPE.fingerprint, build_tokenizer("bpe", 319, CODE).fingerprint}) == 3


def test_training_gives_the_same_in_every_process() -> None:
    # Many pairs are equally frequent here, so that an order by address or hash seed would show.
    code = (
        "from moeworks.data import build_tokenizer\n"
        "texts = [f'{a}{b} {b}{a}' for a in 'abcdefgh' for b in 'abcdefgh'] * 3\n"
        "print(build_tokenizer('bpe', 400, texts).fingerprint)"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    texts = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "abcdefgh"] * 3
    assert other.strip() == build_tokenizer("bpe", 400, texts).fingerprint


def made_file(path: Path, end_of_text: str | None) -> str:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 9}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_padding(length=8)
    backend.enable_truncation(2)
    if end_of_text is not None:
        backend.add_special_tokens([end_of_text])
    backend.save(str(path))
    return str(path)


@pytest.mark.parametrize("name", ["</s>", "<|end_of_text|>", "<eos>"])
def test_a_file_of_the_user_is_taken_without_its_padding_and_truncation(tmp_path: Path, name: str) -> None:
    tokenizer = build_tokenizer(made_file(tmp_path / "t.json", name), 10, [])
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (10, 3)
    assert tokenizer.encode("a b a b").tolist() == [0, 1, 0, 1]


def test_a_vocabulary_that_does_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = made_file(tmp_path / "t.json", "</s>")
    with pytest.raises(DataError, match=r"t\.json: its 10 tokens do not fit model\.vocab_size = 9"):
        build_tokenizer(path, 9, [])


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_a_vocabulary_below_the_bytes_is_refused(kind: str) -> None:
    with pytest.raises(
        DataError, match=rf"model\.vocab_size = 256: the tokenizer '{kind}' needs at least 257"
    ):
        build_tokenizer(kind, 256, CODE)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: the tokenizer cannot be read: No such file"):
        build_tokenizer(str(tmp_path / "none.json"), 300, [])
    for content in ("", "{", "[1]", json.dumps({"model": {"type": "Unknown"}}), "\xff"):
        (tmp_path / "bad.json").write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=r"bad\.json: not a tokenizer\.json"):
            load_tokenizer(tmp_path / "bad.json")
    with pytest.raises(
        DataError, match=r"t\.json: has no end-of-text token; known names: <\|endoftext\|> </s>"
    ):
        load_tokenizer(made_file(tmp_path / "t.json", None))
    with pytest.raises(DataError, match=r"x\.json: cannot be written: No such file"):
        BYTES.save(tmp_path / "no folder" / "x.json")
