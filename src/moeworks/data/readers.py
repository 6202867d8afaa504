"""Readers that turn one file into documents: text (whole or in pieces), jsonl and parquet."""

import codecs
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from moeworks.config import CorpusConfig
from moeworks.data.documents import Document, document_from_record
from moeworks.data.files import CODE, SourceFile
from moeworks.errors import DataError, require

PIECE_BYTES = 16_384
"""A file of prose is cut at the first blank line after this many bytes, so that a hash can split it."""
LONGEST_PIECE_BYTES = 4 * PIECE_BYTES
"""Without a blank line it is cut at the next line end after this many (a longer line: in the middle)."""


def read_file(file: SourceFile, config: CorpusConfig, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of one file, in order, holding no more than one piece or batch of rows in memory.

    .jsonl and .parquet give one document per record, source code one per file, every other file is prose
    and is cut into pieces of about PIECE_BYTES. A text file that is binary or not UTF-8 gives nothing and
    counts in `skipped` under the reason. Raises DataError for a file that cannot be read, naming it.
    """
    suffix = file.path.suffix.lower()
    with _reading(file.path):
        if suffix == ".jsonl":
            yield from _read_jsonl(file, config)
        elif suffix == ".parquet":
            yield from _read_parquet(file, config)
        else:
            yield from _read_text(file, skipped, whole=suffix in CODE)


def read_hugging_face(name: str, config: CorpusConfig) -> Iterator[Document]:
    """The rows of the split "train" of the Hugging Face dataset `name`, streamed.

    Their domain is config.domain_field, else the last part of the name. Raises MissingDependencyError
    without the datasets package, and DataError for a dataset that cannot be read.
    """
    datasets = require("datasets", extra="hf")
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True, trust_remote_code=False)
        for index, row in enumerate(rows):
            document = document_from_record(row, config, name.rpartition("/")[2], f"hf:{name}:{index}")
            if document is not None:
                yield document
    except (OSError, ValueError) as error:
        raise DataError(f"hf:{name}: the dataset cannot be read: {error}") from error


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read: {reason}") from error


def _read_text(file: SourceFile, skipped: Counter[str], *, whole: bool) -> Iterator[Document]:
    problem = _binary_reason(file.path)
    if problem:
        skipped[problem] += 1
        return
    with open(file.path, encoding="utf-8-sig", newline="") as handle:
        pieces = [handle.read()] if whole else split_prose(_lines(handle))
        for number, text in enumerate(pieces):
            if text:
                yield Document(text, file.domain, f"{file.path}:{number}" if number else str(file.path))


def _lines(handle: TextIO) -> Iterator[str]:
    """Lines, split into parts of at most LONGEST_PIECE_BYTES characters: a file may be a single line."""
    return iter(lambda: handle.readline(LONGEST_PIECE_BYTES), "")


def split_prose(lines: Iterable[str]) -> Iterator[str]:
    """Join `lines` into pieces of about PIECE_BYTES that end at blank lines; nothing is lost."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line.encode())
        if size >= LONGEST_PIECE_BYTES or (size >= PIECE_BYTES and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _binary_reason(path: Path) -> str | None:
    """Why the file is no text, after a look at all of it; None if it is text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            if b"\0" in block:
                return "with NUL bytes"
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return "not in UTF-8"
    return "not in UTF-8" if decoder.getstate()[0] else None


def _read_jsonl(file: SourceFile, config: CorpusConfig) -> Iterator[Document]:
    with open(file.path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            source = f"{file.path}:{number}"
            document = document_from_record(_parse(line, source), config, file.domain, source)
            if document is not None:
                yield document


def _parse(line: bytes, source: str) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not a line of JSON in UTF-8: {error}") from error


def _read_parquet(file: SourceFile, config: CorpusConfig) -> Iterator[Document]:
    columns = [name for name in (config.text_field, config.domain_field) if name is not None]
    with pq.ParquetFile(file.path) as table:
        for name in columns:
            if name not in table.schema_arrow.names:
                known = ", ".join(table.schema_arrow.names)
                raise DataError(f"{file.path}: no column {name!r}; it has: {known}")
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for record in batch.to_pylist():
                document = document_from_record(record, config, file.domain, f"{file.path}:{row}")
                row += 1
                if document is not None:
                    yield document
