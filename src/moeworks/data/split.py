"""Train or validation: decided by a hash of the content, so that a document never leaks."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moeworks.data.documents import Document, content_digest, document_digest
from moeworks.errors import DataError


@dataclass(frozen=True)
class CorpusScan:
    """Sizes, domains and content hash of a corpus, found in one pass over it."""

    content_hash: str
    """Hash of all texts and domains, in order."""
    domains: tuple[str, ...]
    num_documents: int
    num_bytes: int
    num_training_bytes: int
    split: "Split"


@dataclass(frozen=True)
class Split:
    """Assignment of documents to training or validation by `fraction`, except in very small corpora.

    Where one side would be empty, the document with the smallest digest, `moved`, changes sides (with every
    copy of it). A corpus of one distinct document is `cut`: its last `fraction`, from a paragraph or line on,
    is the validation set.
    """

    fraction: float
    moved: bytes | None = None
    cut: bool = False

    def assign(self, text: str) -> list[tuple[bool, str]]:
        """The parts of one document, each as (whether it is for validation, text)."""
        if self.cut:
            head, tail = cut_in_two(text, self.fraction)
            return [(False, head), (True, tail)]
        digest = content_digest(text)
        return [(_below(digest, self.fraction) ^ (digest == self.moved), text)]


def is_validation(text: str, fraction: float) -> bool:
    """Whether the document belongs to the validation side: its sha256, as a number in [0, 1), < fraction."""
    return _below(content_digest(text), fraction)


def _below(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def scan(documents: Iterable[Document], fraction: float) -> CorpusScan:
    """Read every document once; needs memory for the domain names only."""
    content, domains, smallest, largest = hashlib.sha256(), set(), b"\xff" * 33, b""
    count = total = training = 0
    for document in documents:
        digest = content_digest(document.text)
        content.update(document_digest(document))
        domains.add(document.domain)
        smallest, largest = min(smallest, digest), max(largest, digest)
        count, size = count + 1, len(document.text.encode())
        total += size
        training += 0 if _below(digest, fraction) else size
    return CorpusScan(
        content_hash=content.hexdigest(),
        domains=tuple(sorted(domains)),
        num_documents=count,
        num_bytes=total,
        num_training_bytes=training,
        split=_plan(fraction, smallest, largest),
    )


def _plan(fraction: float, smallest: bytes, largest: bytes) -> Split:
    if smallest == largest:
        return Split(fraction, cut=True)
    one_sided = _below(smallest, fraction) == _below(largest, fraction)
    return Split(fraction, moved=smallest if one_sided else None)


def cut_in_two(text: str, fraction: float) -> tuple[str, str]:
    """`text` in two parts that are not empty; the second is about `fraction` of it.

    The cut is at the blank line, else the line end, else the character nearest to the wanted place. Raises
    DataError for a text of one character.
    """
    if len(text) < 2:
        raise DataError("the corpus is a single character: there is nothing to hold out for validation")
    wanted = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
    for separator in ("\n\n", "\n"):
        cuts = [cut for cut in _cuts(text, separator) if cut < len(text)]
        if cuts:
            wanted = min(cuts, key=lambda cut: abs(cut - wanted))
            break
    return text[:wanted], text[wanted:]


def _cuts(text: str, separator: str) -> Iterator[int]:
    end = text.find(separator)
    while end >= 0:
        yield end + len(separator)
        end = text.find(separator, end + len(separator))
