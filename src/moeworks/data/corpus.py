"""All documents of a corpus, streamed in an order that depends on its files alone."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator

from moeworks.config import CorpusConfig
from moeworks.data.documents import Document
from moeworks.data.files import SourceFile, find_files
from moeworks.data.readers import read_file, read_hugging_face
from moeworks.data.stdlib import stdlib_docstrings, stdlib_files
from moeworks.errors import DataError

STDLIB = "stdlib:"
HUGGING_FACE = "hf:"


def iter_documents(
    data: tuple[str, ...], config: CorpusConfig, skipped: Counter[str] | None = None
) -> Iterator[Document]:
    """Every document that `data` names: of files, then of Python's library, then of Hugging Face datasets.

    Each entry of `data` is a file, a folder (read with its subfolders), a glob, "stdlib:", or "hf:NAME".
    readers.read_file describes how files become documents, files.find_files how they get their domain.
    Binary files are passed over and counted by reason in `skipped`. Raises DataError for a path that is
    missing, unreadable or of no supported kind, a bad record, and a corpus without any document.
    """
    skipped = Counter() if skipped is None else skipped
    empty = True
    for document in _documents(data, config, skipped):
        empty = False
        yield document
    if empty:
        raise DataError(f"{' '.join(data) or 'data'}: no text at all{_tell(skipped)}")


def _documents(data: tuple[str, ...], config: CorpusConfig, skipped: Counter[str]) -> Iterator[Document]:
    for file in corpus_files(data):
        yield from read_file(file, config, skipped)
    if STDLIB in data:
        yield from stdlib_docstrings()
    for entry in data:
        if entry.startswith(HUGGING_FACE):
            yield from read_hugging_face(entry.removeprefix(HUGGING_FACE), config)


def corpus_files(data: tuple[str, ...]) -> list[SourceFile]:
    """The files of the corpus, in the order in which they are read."""
    files = find_files(tuple(entry for entry in data if not _is_special(entry)))
    return files + (stdlib_files() if STDLIB in data else [])


def source_signature(data: tuple[str, ...]) -> str | None:
    """A hash over the names, sizes and times of all files, that tells a change without reading them.

    None for a corpus that is not made of files alone.
    """
    if any(entry.startswith(HUGGING_FACE) for entry in data):
        return None
    seen: list[object] = [sys.version, sys.executable] if STDLIB in data else []
    for file in corpus_files(data):
        try:
            stat = file.path.stat()
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read: {error.strerror}") from error
        seen.append([str(file.path.absolute()), file.domain, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(seen).encode("utf-8", "surrogateescape")).hexdigest()


def _is_special(entry: str) -> bool:
    return entry == STDLIB or entry.startswith(HUGGING_FACE)


def _tell(skipped: Counter[str]) -> str:
    if not skipped:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"; skipped {skipped.total()} files that are not text: {reasons}"
