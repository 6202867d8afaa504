"""tokenizer.model files: sentencepiece's own ids, tokens beside the model, text as it comes."""

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_published import LLAMA, write

from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.data.pieces import Pieces
from moeworks.data.sentencepiece_tokenizer import Added, SentencePieceTokenizer
from moeworks.errors import DataError, MissingDependencyError
from moeworks.generate.stream import TextStream

spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

LANGUAGES = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "def f(x):\n    return  x ** 2   # ﬁne ① Ａ\t\u00a0end 😀👍🏽",
]
KINDS = {
    "llama": dict(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        user_defined_symbols=["<fim>", "▁▁"],
    ),
    "bpe": dict(model_type="bpe", control_symbols=["[INST]", "[/INST]"]),
    "unigram": dict(model_type="unigram", byte_fallback=True, control_symbols=["[INST]", "[/INST]"]),
    "no_prefix": dict(
        model_type="unigram", add_dummy_prefix=False, normalization_rule_name="nfkc",
        user_defined_symbols=["<fim>"], treat_whitespace_as_suffix=True,
    ),
}  # fmt: skip
BYTES_KEPT = {"llama", "unigram"}


@pytest.fixture(scope="module", params=KINDS)
def trained(request) -> tuple[str, bytes]:
    model = io.BytesIO()
    options = dict(vocab_size=520, character_coverage=0.98, hard_vocab_limit=False, minloglevel=2)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LANGUAGES * 20), model_writer=model, **options, **KINDS[request.param]
    )
    return request.param, model.getvalue()


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A published model with this tokenizer.model alone."""
    path = tmp_path_factory.mktemp(trained[0]) / "m"
    write(path, LLAMA | dict(vocab_size=600, max_position_embeddings=64))
    (path / "tokenizer.model").write_bytes(trained[1])
    return path


@pytest.fixture(scope="module")
def tokenizer(folder) -> ModelTokenizer:
    return tokenizer_of(folder, 600)


@pytest.fixture(scope="module")
def reference(trained):
    return spm.SentencePieceProcessor(model_proto=trained[1])


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [*LANGUAGES, *" ab▁", "  ", "<s>", "</s>", "<0x41>", "<fim>", "[INST]", "<unk>", "é"]
        ),
        max_size=6,
    ).map("".join),
)


@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
def test_ids_and_text_are_those_of_sentencepiece(tokenizer, reference, trained, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids)
    if trained[0] == "llama":
        assert tokenizer.decode(ids) == text.replace("▁", " ")
    elif trained[0] in BYTES_KEPT:
        assert tokenizer.decode(ids) == reference.normalize(text).replace("▁", " ").strip(" ")


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_a_stream_makes_the_text_and_splits_no_character(tokenizer, trained, text, data):
    for ids in (tokenizer.encode(text), data.draw(st.lists(st.integers(0, 599), max_size=20))):
        stream = TextStream(tokenizer.decode)
        pieces = [*(stream.add(token) for token in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
    if trained[0] == "llama" and "\ufffd" not in text:
        stream = TextStream(tokenizer.decode)
        assert not any("\ufffd" in stream.add(token) for token in tokenizer.encode(text))


def test_the_fingerprint_tells_tokenizers_apart(tokenizer, folder, trained):
    assert tokenizer_of(folder, 600).fingerprint == tokenizer.fingerprint
    path = folder / "tokenizer.model"
    plain = SentencePieceTokenizer(path, {})
    more = SentencePieceTokenizer(path, {"<more>": Added(520, special=False)})
    again = SentencePieceTokenizer(path, {}, prefix_again=False)
    different = 2 if trained[0] == "no_prefix" else 3  # there is no dummy space to begin with
    assert len({ModelTokenizer(backend).fingerprint for backend in (plain, more, again)}) == different


def test_what_texts_start_and_end_with(tokenizer, reference, folder):
    assert tokenizer.start_ids == (reference.bos_id(),)
    assert tokenizer.stop_ids == (reference.eos_id(), *_ends(folder))
    assert tokenizer.encode_prompt("abc") == [reference.bos_id(), *reference.encode("abc")]
    assert tokenizer.special_tokens["bos_token"] == "<s>" and tokenizer.size == reference.vocab_size()


def _ends(folder) -> tuple[int, ...]:
    end = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    return () if end is None else (end,)


def test_control_symbols_are_text_unless_a_template_wrote_them(tokenizer, reference):
    bos, eos = reference.bos_id(), reference.eos_id()
    assert bos not in tokenizer.encode("<s>hi</s>")
    parts = [reference.encode(part) for part in ("hi there", " and on")]
    assert tokenizer.encode_marked("<s>hi there</s> and on") == [bos, *parts[0], eos, *parts[1]]
    assert tokenizer.decode([bos, *parts[0], eos]) == f"<s>{reference.decode(parts[0])}</s>"
    if (mark := reference.piece_to_id("[INST]")) != reference.unk_id():
        assert tokenizer.encode_marked("<s>[INST]x")[:2] == [bos, mark]


def configured(folder, tmp_path, **config) -> ModelTokenizer:
    path = tmp_path / "m"
    write(path, LLAMA | dict(vocab_size=600, max_position_embeddings=64))
    (path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    added = config.pop("added", None)
    if added is not None:
        (path / "added_tokens.json").write_text(json.dumps(added))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_of(path, 600)


def test_tokens_beside_the_model(folder, reference, tmp_path):
    decoder = {
        "590": {"content": "<|end|>", "special": True, "rstrip": True},
        "591": {"content": "<tool>", "special": False},
        "1": {"content": "<s>", "special": True},
    }
    found = configured(
        folder, tmp_path, added_tokens_decoder=decoder, added={"<|start|>": 592},
        eos_token="<|end|>", add_bos_token=False, legacy=True,
        chat_template="<|start|>{{ messages[0].content }}",
    )  # fmt: skip
    assert found.start_ids == () and 590 in found.stop_ids and found.size == 593
    hi = reference.encode("hi")
    assert found.encode_marked("hi<|end|>  hi") == [*hi, 590, *hi]
    assert found.encode("hi<|end|>") == reference.encode("hi<|end|>")
    assert found.encode("hi<tool>hi") == [*hi, 591, *hi]
    assert found.encode_chat([{"role": "user", "content": "hi"}]) == [592, *hi]
    assert found.decode([592, *hi, 591, 595, 599]) == "<|start|>hi<tool>"


def test_without_legacy_only_a_text_begins_with_the_dummy_space(folder, reference, trained, tmp_path):
    found = configured(folder, tmp_path, legacy=False)
    ids = found.encode_marked("ab</s>ab")
    cut = ids.index(reference.eos_id())
    assert ids[:cut] == reference.encode("ab")
    assert (ids[cut + 1 :] == ids[:cut]) == (trained[0] == "no_prefix")
    assert found.decode(ids) == "ab</s>ab"


def test_a_tokenizer_json_goes_first_and_bad_files_are_errors(folder, tmp_path, monkeypatch):
    path = tmp_path / "m"
    configured(folder, tmp_path)
    for content in (
        b"",
        b"\x80garbage",
        b"IQ== 0\nIg== 1\n",
        (folder / "tokenizer.model").read_bytes()[:-7],
    ):
        (path / "tokenizer.model").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.model: not a SentencePiece model"):
            tokenizer_of(path, 600)
    (path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    for added in ('{"a": "b"}', "[1]", '{"": 3}', '{"x": -1}', "{"):
        (path / "added_tokens.json").write_text(added)
        with pytest.raises(DataError, match="added token"):
            tokenizer_of(path, 600)
    (path / "added_tokens.json").unlink()
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        tokenizer_of(path, 600)
    (path / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moeworks\[sentencepiece\]'"):
        tokenizer_of(path, 600)


def test_the_longest_token_is_cut_out(folder):
    added = {"<a>": Added(590, special=True), "<a><b>": Added(591, special=True, lstrip=True)}
    found = SentencePieceTokenizer(folder / "tokenizer.model", added)
    ids = found.encode("x  <a><b><a>").ids
    assert ids[-2:] == [591, 590] and found.token_to_id("<a>") == 590
    assert found.decode(ids, skip_special_tokens=True) == "x"


@pytest.mark.parametrize("text", LANGUAGES)
def test_pieces_make_the_text(tokenizer, trained, text):
    """What a report shows of single tokens: bytes and their spaces are all there."""
    pieces = Pieces(tokenizer.backend).of(tokenizer.encode(text))
    assert None not in pieces
    if trained[0] == "llama":
        assert b"".join(pieces).decode() == " " + text.replace("▁", " ")
    assert Pieces(tokenizer.backend).of([10**6, -1]) == [None, None]
    assert Pieces(tokenizer.backend).of(tokenizer.start_ids) == [b"<s>"]
