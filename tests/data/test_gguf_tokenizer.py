"""Tokenizers inside GGUF files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import BYTES, PIECES, write_tokenizer

from moeworks.data.gguf_tokenizer import bpe_of_scores, byte_level_bpe, read_gguf_tokenizer
from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.errors import DataError


def test_byte_level(tmp_path):
    types = [1] * 258 + [3]
    path = write_tokenizer(
        tmp_path / "m.gguf", "gpt2", BYTES, token_merges=["a b", "Ġ ab"], token_types=types, eos_token_id=258,
        tokenizer_pre="smollm", chat_template="{{ messages[0].content }}<|end|>",
    )  # fmt: skip
    tokenizer = tokenizer_of(path, 259)
    assert tokenizer.encode("ab ab") == [256, 257]
    assert tokenizer.encode("<|end|>") != [258]
    assert tokenizer.encode_chat([{"role": "user", "content": "ab"}]) == [256, 258]
    assert (tokenizer.start_ids, tokenizer.stop_ids, tokenizer.prefix_ids) == ((), (258,), (258,))
    assert tokenizer.decode([256, 257]) == "ab ab"


def test_pieces_with_scores(tmp_path):
    scores = [0.0] * 260 + [-1.0, -2.0, -3.0, -4.0, -5.0]
    path = write_tokenizer(
        tmp_path / "m.gguf", "llama", PIECES, token_scores=scores, bos_token_id=1, eos_token_id=2,
        token_types=[2, 3, 3] + [6] * 256 + [1] * 6,
    )  # fmt: skip
    tokenizer = tokenizer_of(path, 265)
    assert tokenizer.start_ids == (1,)
    assert tokenizer.decode(tokenizer.encode("ab é\n")) == "ab é\n"
    assert tokenizer.encode("a") == [PIECES.index("▁a")]


@given(st.text(alphabet="ab é😀\n", max_size=60))
def test_pieces_give_the_text_back(text):
    backend = bpe_of_scores(PIECES, [-float(i) for i in range(len(PIECES))])
    assert (
        backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    )


def test_the_best_score_merges_first():
    """As sentencepiece's BPE: not the leftmost pair, not the longest piece."""
    pieces = ["<unk>", "a", "b", "c", "ab", "bc"]
    for scores, want in (([0, 0, 0, 0, -1.0, -2.0], ["ab", "c"]), ([0, 0, 0, 0, -2.0, -1.0], ["a", "bc"])):
        backend = bpe_of_scores(pieces, scores, prefix=False)
        assert backend.encode("abc").tokens == want


def test_bad_ones_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer.ggml.model = 'bert': only gpt2 and llama"):
        read_gguf_tokenizer(write_tokenizer(tmp_path / "a.gguf", "bert", ["a"]))
    with pytest.raises(DataError, match=r"tokenizer.ggml.pre = 'smolm': did you mean 'smollm'"):
        byte_level_bpe(BYTES, [], "smolm")
    with pytest.raises(DataError, match="they do not fit the tokens"):
        byte_level_bpe(BYTES, ["a nothing"], "gpt-2")
    with pytest.raises(DataError, match="1 of them for 2 tokens"):
        bpe_of_scores(["a", "b"], [1.0])
    with pytest.raises(DataError, match=r"eos_token_id = 999: there are 259 tokens"):
        read_gguf_tokenizer(
            write_tokenizer(tmp_path / "b.gguf", "gpt2", BYTES, token_merges=["a b"], eos_token_id=999)
        )
    (tmp_path / "c.gguf").write_bytes(b"GGUF no")
    with pytest.raises(DataError, match="not a readable GGUF file"):
        read_gguf_tokenizer(tmp_path / "c.gguf")
