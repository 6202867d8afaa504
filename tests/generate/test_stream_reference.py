"""The text of a continuation, held against what tokenizers make of prompt and continuation in one go."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_backends import BACKENDS, CORPUS
from tokenizers import Tokenizer

from moeworks.data.sentencepiece_tokenizer import SentencePieceTokenizer
from moeworks.data.tokenizer import build_tokenizer
from moeworks.generate.stream import TextStream, continuation_text

TEXTS = st.one_of(st.text(alphabet="ab c!\n\tö😀は", max_size=90), st.text(max_size=40))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> Tokenizer:
    return BACKENDS[request.param]()


def decode_with(backend):
    return lambda ids: backend.decode(ids, skip_special_tokens=False)


def added(decode, before: list[int], ids: list[int]) -> str:
    """What `ids` add to the text of `before`; a character that `before` cuts through belongs to `ids`."""
    whole = decode([*before, *ids])
    own = decode(before).rstrip("\ufffd")
    return whole[
        next((i for i, pair in enumerate(zip(own, whole, strict=False)) if pair[0] != pair[1]), len(own)) :
    ]


@given(text=TEXTS, place=st.floats(0, 1))
def test_a_continuation_is_what_it_adds_to_the_prompt(backend, text, place):
    text = text.replace("\ufffd", "")
    decode, ids = decode_with(backend), backend.encode(text, add_special_tokens=False).ids
    cut = int(place * len(ids))
    before, rest = ids[:cut], ids[cut:]
    stream, shown = TextStream(decode, before), ""
    for token in rest:
        piece = stream.add(token)
        assert "\ufffd" not in piece or "\ufffd" in decode(ids)
        shown += piece
    assert shown + stream.finish() == added(decode, before, rest)


@given(data=st.data(), size=st.integers(1, 40))
def test_any_tokens_that_are_whole_characters(backend, data, size):
    """Not only those that the tokenizer would choose itself: models write what they like."""
    count = backend.get_vocab_size()
    decode, pool = decode_with(backend), st.sampled_from([i for i in range(count) if is_whole(backend, i)])
    ids = data.draw(st.lists(pool, min_size=size, max_size=size))
    cut = data.draw(st.integers(0, size))
    assert continuation_text(decode, ids[:cut], ids[cut:]) == added(decode, ids[:cut], ids[cut:])


def is_whole(backend: Tokenizer, number: int) -> bool:
    piece = backend.id_to_token(number)
    return piece is not None and not piece.startswith("<") and "\ufffd" not in backend.decode([number])


@given(text=st.text(alphabet="ab c!", min_size=300, max_size=400))
@settings(max_examples=10)
def test_a_long_prompt_costs_no_more_than_a_short_one(backend, text):
    ids = backend.encode(text, add_special_tokens=False).ids
    sizes: list[int] = []

    def decode(ids: list[int]) -> str:
        sizes.append(len(ids))
        return backend.decode(ids, skip_special_tokens=False)

    stream = TextStream(decode, ids[:-20])
    sizes.clear()
    shown = "".join(map(stream.add, ids[-20:]))
    assert max(sizes) <= 65
    assert shown == added(decode, ids[:-20], ids[-20:])


@given(text=st.text(alphabet="ab c!ö😀", max_size=60), place=st.floats(0, 1))
def test_sentencepiece(spm_backend, text, place):
    decode, ids = decode_with(spm_backend), spm_backend.encode(text).ids
    cut = int(place * len(ids))
    assert continuation_text(decode, ids[:cut], ids[cut:]) == added(decode, ids[:cut], ids[cut:])


@pytest.fixture(scope="module")
def spm_backend(tmp_path_factory) -> SentencePieceTokenizer:
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, vocab_size=320, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return SentencePieceTokenizer(path, {})


def test_a_character_that_the_prompt_cuts_through():
    """The first half stands in the prompt; the whole character is the continuation's."""
    for name in ("byte fallback", "bytes of a run", "gguf llama", "gguf gpt2"):
        backend = BACKENDS[name]()
        ids = backend.encode("a😀", add_special_tokens=False).ids
        pieces = [TextStream(decode_with(backend), ids[:-2])]
        assert [pieces[0].add(token) for token in ids[-2:]] == ["", "😀"]


def test_a_replacement_character_that_the_prompt_spells():
    backend = build_tokenizer("bytes", 257, []).backend
    before, ids = list("a\ufffd".encode()), list("b\ufffd".encode())
    assert continuation_text(decode_with(backend), before, ids) == "b\ufffd"
    assert continuation_text(decode_with(backend), before, list("\ufffd!".encode())) == "\ufffd!"


def test_a_space_after_bytes_that_are_no_text():
    """Hundreds of bad bytes are given up; what follows keeps its space."""
    backend = BACKENDS["byte fallback"]()
    bad, word = backend.token_to_id("<0xFF>"), backend.token_to_id("▁a")
    text = continuation_text(decode_with(backend), [word], [bad] * 600 + [word])
    assert text == "\ufffd" * 600 + " a"
