"""Where the texts of token ids come from."""

import hashlib

import pytest
import tokenizers

from moeworks.cli.trace_tokenizer import find_pieces
from moeworks.errors import ConfigError, DataError
from moeworks.trace import TraceHeader


def backend(*words):
    return tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))


def header(model="", fingerprint=None):
    return TraceHeader(num_experts=4, top_k=1, layers=(0,), model=model, tokenizer_fingerprint=fingerprint)


@pytest.fixture
def folder(tmp_path):
    backend("a", "b").save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def fingerprint(folder):
    saved = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return hashlib.sha256(saved.to_str().encode()).hexdigest()


def test_given_as_a_file_a_folder_or_a_model(folder, fingerprint):
    for tokenizer, model in [(folder / "tokenizer.json", None), (folder, None), (None, folder)]:
        pieces, why = find_pieces(header(fingerprint=fingerprint), tokenizer, model)
        assert pieces.of([1]) == [b"b"]
        assert why == ""


def test_the_tokenizer_of_a_checkpoint_lies_in_its_run(folder):
    step = folder / "checkpoints" / "step-1"
    step.mkdir(parents=True)
    (step / "checkpoint.json").write_text("{}")
    pieces, _ = find_pieces(header(), None, step)
    assert pieces.of([0]) == [b"a"]


def test_another_one_is_refused(folder):
    for tokenizer, model, field in [(folder, None, "tokenizer"), (None, folder, "model")]:
        with pytest.raises(ConfigError, match=f"^{field} = .*not the one of the trace"):
            find_pieces(header(fingerprint="0" * 64), tokenizer, model)


def test_the_path_that_the_trace_names(folder, fingerprint):
    pieces, _ = find_pieces(header(str(folder), fingerprint), None, None)
    assert pieces.of([0]) == [b"a"]
    assert find_pieces(header("some/published-model"), None, None) == (None, "")
    pieces, why = find_pieces(header(str(folder), "0" * 64), None, None)
    assert pieces is None
    assert "another tokenizer" in why


def test_what_cannot_be_read(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        find_pieces(header(), folder, None)
    pieces, why = find_pieces(header(str(folder)), None, None)
    assert pieces is None
    assert "tokenizer.json" in why
