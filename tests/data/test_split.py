import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.data import is_validation
from moeworks.data.documents import Document, content_digest
from moeworks.data.split import Split, cut_in_two, scan
from moeworks.errors import DataError

texts = st.text(st.characters(codec="utf-8"), min_size=1)


def documents(*pairs: tuple[str, str]) -> list[Document]:
    return [Document(text, domain, "") for text, domain in pairs]


def sides(split: Split, corpus: list[str]) -> list[bool]:
    return [held_out for text in corpus for held_out, _ in split.assign(text)]


def test_the_side_is_the_hash_as_a_number_below_the_fraction() -> None:
    place = int(hashlib.sha256(b"some text").hexdigest()[:16], 16) / 2**64
    assert is_validation("some text", place + 1e-9) and not is_validation("some text", place - 1e-9)


def test_about_the_wanted_share_is_held_out() -> None:
    held_out = sum(is_validation(f"document {number}", 0.05) for number in range(20_000))
    assert 850 < held_out < 1150  # 1000, and almost 5 standard deviations of 31


@given(st.lists(texts, min_size=2, max_size=12), st.floats(0.01, 0.99))
def test_no_text_is_on_both_sides_and_no_side_is_empty(corpus: list[str], fraction: float) -> None:
    found = scan(documents(*((text, "d") for text in corpus)), fraction)
    if found.split.cut:
        assert len(set(corpus)) == 1
        return
    held_out = {text for text in corpus if found.split.assign(text) == [(True, text)]}
    trained = {text for text in corpus if found.split.assign(text) == [(False, text)]}
    assert held_out and trained and not held_out & trained
    assert held_out | trained == set(corpus)


def test_a_document_moves_only_if_a_side_would_be_empty() -> None:
    corpus = [f"document {number}" for number in range(1000)]
    split = scan(documents(*((text, "d") for text in corpus)), 0.1).split
    assert split == Split(0.1)
    assert sides(split, corpus) == [is_validation(text, 0.1) for text in corpus]


@pytest.mark.parametrize(("fraction", "moved_to_validation"), [(1e-9, True), (1 - 1e-9, False)])
def test_in_a_small_corpus_the_smallest_hash_changes_sides(
    fraction: float, moved_to_validation: bool
) -> None:
    corpus = ["one", "two", "three", "two"]
    split = scan(documents(*((text, "d") for text in corpus)), fraction).split
    smallest = min(corpus, key=content_digest)
    assert split.moved == content_digest(smallest)
    assert sides(split, corpus) == [(text == smallest) == moved_to_validation for text in corpus]


def test_one_distinct_document_is_cut_in_two() -> None:
    text = "first paragraph\n\nsecond paragraph\n\nthird"
    split = scan(documents((text, "a"), (text, "b")), 0.2).split
    assert split == Split(0.2, cut=True)
    assert split.assign(text) == [(False, "first paragraph\n\nsecond paragraph\n\n"), (True, "third")]


@pytest.mark.parametrize(
    ("text", "fraction", "tail"),
    [
        ("aaa\n\nb\nb\n\ncc", 0.4, "b\nb\n\ncc"),
        ("aaaa\nbbbb\ncc", 0.1, "cc"),
        ("aaaa\nbbbb\n", 0.01, "bbbb\n"),
        ("abcdefghij", 0.2, "ij"),
        ("ab", 0.99, "b"),
        ("a\n", 0.5, "\n"),
    ],
)
def test_the_cut_is_at_the_nearest_paragraph_line_or_character(text: str, fraction: float, tail: str) -> None:
    assert cut_in_two(text, fraction) == (text[: -len(tail)], tail)


@given(st.text(min_size=2), st.floats(0.01, 0.99))
def test_a_cut_loses_nothing(text: str, fraction: float) -> None:
    head, tail = cut_in_two(text, fraction)
    assert head and tail and head + tail == text


def test_a_single_character_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="a single character: there is nothing to hold out"):
        cut_in_two("x", 0.5)


def test_a_scan_counts_documents_bytes_and_domains() -> None:
    corpus = documents(("é", "b"), ("two", "a"), ("three", "b"))
    found = scan(iter(corpus), 0.5)
    trained = [document.text for document in corpus if not is_validation(document.text, 0.5)]
    assert (found.num_documents, found.num_bytes, found.domains) == (3, 10, ("a", "b"))
    assert found.num_training_bytes == len("".join(trained).encode())


def test_the_content_hash_depends_on_texts_domains_and_order_alone() -> None:
    def content(*pairs: tuple[str, str], source: str = "") -> str:
        return scan([Document(*pair, source) for pair in pairs], 0.5).content_hash

    base = content(("x", "a"), ("y", "b"))
    assert base == content(("x", "a"), ("y", "b"), source="elsewhere")
    others = [
        content(("y", "b"), ("x", "a")),
        content(("x", "b"), ("y", "b")),
        content(("x", "a")),
        content(("xy", "a"), ("", "b")),
    ]
    assert len({base, *others}) == 5
