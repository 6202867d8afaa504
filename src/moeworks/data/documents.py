"""The unit of a corpus: one document, with its domain label and where it came from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from moeworks.config import CorpusConfig
from moeworks.errors import DataError


@dataclass(frozen=True)
class Document:
    """One text; never empty, and always encodable as UTF-8."""

    text: str
    domain: str
    source: str
    """Path, path:line or dataset:row; for messages, not part of the corpus' identity."""


def content_digest(text: str) -> bytes:
    """The 32 bytes of sha256 over `text` in UTF-8."""
    return hashlib.sha256(text.encode()).digest()


def document_digest(document: Document) -> bytes:
    """The 64 bytes that stand for text and domain of `document` in the hash of a corpus."""
    return content_digest(document.domain) + content_digest(document.text)


def document_from_record(record: object, config: CorpusConfig, domain: str, source: str) -> Document | None:
    """The document of one jsonl line, parquet row or dataset row; None when its text is empty or null.

    `domain` is the label where config.domain_field names none. Raises DataError when `record` is not an
    object, lacks a field that config names, or holds something else than text there.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: holds a {type(record).__name__}, not an object with named fields")
    text = _field(record, config.text_field, source)
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise DataError(f"{source}: field {config.text_field!r} is a {type(text).__name__}, not text")
    if config.domain_field is not None:
        domain = _domain(_field(record, config.domain_field, source), config.domain_field, source)
    return Document(without_surrogates(text), domain, source)


def _field(record: Mapping, name: str, source: str) -> object:
    if name not in record:
        raise DataError(f"{source}: no field {name!r}; it has: {', '.join(map(str, record)) or 'none'}")
    return record[name]


def _domain(value: object, name: str, source: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{source}: field {name!r} is {value!r}; a domain label is text or a whole number")
    return without_surrogates(str(value))


def without_surrogates(text: str) -> str:
    """Replace half surrogate pairs, which JSON and file names can hold but UTF-8 cannot, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
