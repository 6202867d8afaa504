"""Tokens of one split on disk, memory-mapped, and how they are written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_INDEX_TYPES = {"document_starts": "<i8", "document_bytes": "<i8", "document_domains": "<i4"}

_COUNTED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class TokenStore:
    """N documents, each stored as the end-of-text token and then its own tokens, one after the other."""

    tokens: np.ndarray
    """1-D, uint16 or uint32."""
    document_starts: np.ndarray
    """int64 [N + 1]: document i is tokens[document_starts[i] : document_starts[i + 1]]."""
    document_bytes: np.ndarray
    """int64 [N]: length of the text in UTF-8."""
    document_domains: np.ndarray
    """int32 [N]: index into the corpus' domains."""
    num_domains: int
    """Number of domains of the whole corpus; this split may lack some."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all documents, including one end-of-text token each."""
        return len(self.tokens)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """int64 [vocab_size]: how often each token occurs. Reads all of the text, a part at a time."""
        counts_V = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self.tokens), _COUNTED_AT_ONCE):
            counts_V += np.bincount(self.tokens[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
        return counts_V

    @property
    def num_documents(self) -> int:
        """Number of documents; none of them is empty."""
        return len(self.document_bytes)


def token_type(vocab_size: int) -> str:
    """The numpy type of stored tokens: two bytes while they suffice."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def open_store(folder: Path, vocab_size: int, num_domains: int) -> TokenStore:
    """Map the files of a StoreWriter into memory; nothing is read yet."""
    arrays = {name: _map(folder, name, kind) for name, kind in _INDEX_TYPES.items()}
    return TokenStore(_map(folder, "tokens", token_type(vocab_size)), num_domains=num_domains, **arrays)


def _map(folder: Path, name: str, kind: str) -> np.ndarray:
    return np.memmap(folder / f"{name}.bin", dtype=kind, mode="r")


class StoreWriter:
    """Appends documents to the files of one split; holds no document in memory. A context manager."""

    def __init__(self, folder: Path, vocab_size: int, end_of_text_id: int) -> None:
        folder.mkdir()
        self._end_of_text_id = end_of_text_id
        self._files = {
            name: _HashedFile(folder / f"{name}.bin", kind)
            for name, kind in {"tokens": token_type(vocab_size), **_INDEX_TYPES}.items()
        }
        self._files["document_starts"].append([0])
        self.num_tokens = 0
        self.num_documents = 0

    def append(self, tokens: np.ndarray, num_bytes: int, domain: int) -> None:
        """Add one document; one without tokens is passed over."""
        if len(tokens) == 0:
            return
        self.num_tokens += 1 + len(tokens)
        self.num_documents += 1
        self._files["tokens"].append([self._end_of_text_id])
        self._files["tokens"].append(tokens)
        self._files["document_starts"].append([self.num_tokens])
        self._files["document_bytes"].append([num_bytes])
        self._files["document_domains"].append([domain])

    def checksums(self) -> dict[str, str]:
        """The sha256 of what each file holds, by its name."""
        return {file.path.name: file.checksum() for file in self._files.values()}

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()


class _HashedFile:
    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._kind = np.dtype(kind)
        self._hash = hashlib.sha256()
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed by StoreWriter.__exit__

    def append(self, values: np.ndarray | Sequence[int]) -> None:
        content = np.asarray(values).astype(self._kind).tobytes()
        self._hash.update(content)
        self._file.write(content)

    def checksum(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()
