"""Text as it comes: whole characters, and not a letter of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from moeworks.data.gguf_tokenizer import bpe_of_scores
from moeworks.data.tokenizer import build_tokenizer
from moeworks.generate.stream import StopStrings, TextStream

BYTES = build_tokenizer("bytes", 257, [])


def pieces_of(ids, decode=BYTES.decode) -> list[str]:
    stream = TextStream(decode)
    return [*(stream.add(token) for token in ids), stream.finish()]


@given(st.text(max_size=300))
def test_pieces_are_whole_characters_and_make_the_text(text):
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_text_are_replaced_as_in_one_go(content):
    assert "".join(pieces_of(content)) == BYTES.decode(content)


@given(st.text(min_size=1, max_size=80))
def test_a_character_comes_with_its_last_byte(text):
    """Nothing is held back that is whole."""
    stream, shown = TextStream(BYTES.decode), ""
    for character in text.replace("\ufffd", "?"):
        for byte in character.encode():
            shown += stream.add(byte)
        assert shown.endswith(character)


@given(st.text(alphabet="ab é😀\n", max_size=200))
def test_a_tokenizer_that_swallows_the_first_space(text):
    """As sentencepiece's: only the first token of a text loses its space."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁▁"]
    backend = bpe_of_scores(pieces, [0.0 - i for i in range(len(pieces))])
    ids = backend.encode(text, add_special_tokens=False).ids

    def decode(ids: list[int]) -> str:
        return backend.decode(ids, skip_special_tokens=False)

    assert "".join(pieces_of(ids, decode)) == decode(ids) == text


def test_long_texts_take_time_in_proportion():
    calls = []

    def decode(ids: list[int]) -> str:
        calls.append(len(ids))
        return BYTES.decode(ids)

    assert "".join(pieces_of(b"word " * 400, decode)) == "word " * 400
    assert max(calls) <= 65


def cut(text: str, stops: list[str]) -> str:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places, default=len(text))]


@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 5), max_size=30),
)
def test_stop_strings_cut_as_in_the_whole_text(text, stops, sizes):
    """However the text is cut into pieces; nothing is shown that the whole would not show."""
    watch, shown, rest = StopStrings(stops), "", text
    for size in [*sizes, len(text)]:
        shown += watch.add(rest[:size])
        rest = rest[size:]
        assert cut(text, stops).startswith(shown)
    shown += watch.finish()
    assert shown == cut(text, stops)
    assert watch.stopped == any(stop in text for stop in stops)


def test_what_cannot_begin_a_stop_is_shown_at_once():
    watch = StopStrings(["END"])
    assert [watch.add(piece) for piece in ("on", "e E", "N", "d", "END", "more")] == [
        "on",
        "e ",
        "",
        "ENd",
        "",
        "",
    ]
    assert watch.stopped and watch.finish() == ""
