import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.data.store import StoreWriter, open_store, token_type


def write(folder: Path, documents: list[tuple[list[int], int, int]], vocab_size: int) -> StoreWriter:
    with StoreWriter(folder, vocab_size, end_of_text_id=7) as writer:
        for tokens, size, domain in documents:
            writer.append(np.array(tokens, dtype=np.int64), size, domain)
    return writer


@pytest.mark.parametrize(("vocab_size", "kind"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_take_two_bytes_while_these_suffice(tmp_path: Path, vocab_size: int, kind: str) -> None:
    last = vocab_size - 1
    write(tmp_path / "s", [([last, 0], 2, 0)], vocab_size)
    assert token_type(vocab_size) == kind
    store = open_store(tmp_path / "s", vocab_size, num_domains=1)
    assert store.tokens.dtype == np.dtype(kind) and store.tokens.tolist() == [7, last, 0]


def test_documents_are_laid_out_one_after_the_other(tmp_path: Path) -> None:
    writer = write(tmp_path / "s", [([1, 2, 3], 5, 2), ([], 9, 1), ([4], 1, 0)], 300)
    store = open_store(tmp_path / "s", 300, num_domains=4)
    assert store.tokens.tolist() == [7, 1, 2, 3, 7, 4]
    assert store.document_starts.tolist() == [0, 4, 6]
    assert store.document_bytes.tolist() == [5, 1]
    assert store.document_domains.tolist() == [2, 0]
    assert (store.num_tokens, store.num_documents, store.num_domains) == (6, 2, 4)
    assert (writer.num_tokens, writer.num_documents) == (6, 2)
    types = [store.document_starts.dtype, store.document_bytes.dtype, store.document_domains.dtype]
    assert types == [np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.int32)]


def test_the_files_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "s", [([1], 1, 0)], 300)
    store = open_store(tmp_path / "s", 300, num_domains=1)
    assert isinstance(store.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    checksums = write(tmp_path / "s", [([1, 2], 2, 0), ([3], 1, 1)], 300).checksums()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "s").iterdir()}
    assert checksums == found and len(found) == 4


@given(st.lists(st.lists(st.integers(8, 299), max_size=9), min_size=1, max_size=9).filter(any))
def test_every_document_is_found_again(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    write(folder, [(tokens, len(tokens), 0) for tokens in documents], 300)
    store = open_store(folder, 300, num_domains=1)
    assert [store.tokens[a:b].tolist() for a, b in pairwise(store.document_starts)] == [
        [7, *tokens] for tokens in documents if tokens
    ]
