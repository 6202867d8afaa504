import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.config import CorpusConfig
from moeworks.data.documents import (
    Document,
    content_digest,
    document_digest,
    document_from_record,
    without_surrogates,
)
from moeworks.errors import DataError

PLAIN = CorpusConfig()
LABELLED = CorpusConfig(text_field="body", domain_field="topic")


def test_a_record_becomes_a_document_with_the_domain_of_its_file() -> None:
    made = document_from_record({"text": "hello", "id": 7}, PLAIN, "mail", "mail.jsonl:3")
    assert made == Document("hello", "mail", "mail.jsonl:3")


@pytest.mark.parametrize(("topic", "domain"), [("law", "law"), (7, "7")])
def test_the_domain_field_wins_over_the_file(topic: object, domain: str) -> None:
    made = document_from_record({"body": "hello", "topic": topic}, LABELLED, "mail", "x:1")
    assert made == Document("hello", domain, "x:1")


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_text_is_no_document(text: object) -> None:
    assert document_from_record({"text": text}, PLAIN, "mail", "x:1") is None


@pytest.mark.parametrize(
    ("record", "config", "message"),
    [
        (["text"], PLAIN, r"x:1: holds a list, not an object"),
        ({"body": "a", "id": 1}, PLAIN, r"x:1: no field 'text'; it has: body, id"),
        ({}, PLAIN, r"x:1: no field 'text'; it has: none"),
        ({"text": 3}, PLAIN, r"x:1: field 'text' is a int, not text"),
        ({"body": "a"}, LABELLED, r"x:1: no field 'topic'; it has: body"),
        ({"body": "a", "topic": None}, LABELLED, r"x:1: field 'topic' is None; a domain label"),
        ({"body": "a", "topic": True}, LABELLED, r"x:1: field 'topic' is True; a domain label"),
    ],
)
def test_a_bad_record_names_place_field_and_value(record: object, config: CorpusConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        document_from_record(record, config, "mail", "x:1")


def test_half_surrogate_pairs_are_replaced_and_whole_ones_joined() -> None:
    assert without_surrogates("a\ud800b") == "a\ufffdb"
    assert without_surrogates("\ud83d\ude00") == "😀"


@given(st.text())
def test_text_without_surrogates_stays(text: str) -> None:
    assert without_surrogates(text) == text


def test_digests_are_sha256_and_tell_text_from_domain() -> None:
    assert content_digest("é") == hashlib.sha256(b"\xc3\xa9").digest()
    digests = {document_digest(Document(*pair, source="")) for pair in [("a", "b"), ("b", "a"), ("ab", "")]}
    assert len(digests) == 3
    assert document_digest(Document("a", "b", "here")) == document_digest(Document("a", "b", "there"))
