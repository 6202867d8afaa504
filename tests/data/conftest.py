"""Small corpora and token stores that several tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moeworks.config import CorpusConfig
from moeworks.data.store import TokenStore

END = 0


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    """Bytes, a fifth held out, and a cache of this test's own."""
    return CorpusConfig(tokenizer="bytes", validation_fraction=0.2, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def texts_folder(tmp_path: Path) -> Path:
    """Sixty short documents in two top folders."""
    root = tmp_path / "texts"
    for number in range(60):
        folder = root / ("poems" if number % 3 else "notes")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.md").write_text(
            f"# Text {number}\n\n" + f"line {number} of it\n" * (number + 1)
        )
    return root


@pytest.fixture
def make_store() -> Callable[..., TokenStore]:
    """A store of documents with the given numbers of tokens; all tokens but the ends are distinct."""

    def make(lengths: list[int], domains: list[int] | None = None, num_domains: int = 3) -> TokenStore:
        starts = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64) + 1)]).astype(np.int64)
        tokens = np.arange(1, starts[-1] + 1).astype(np.uint32)
        tokens[starts[:-1]] = END
        labels = np.arange(len(lengths)) % num_domains if domains is None else domains
        return TokenStore(
            tokens=tokens,
            document_starts=starts,
            document_bytes=np.array(lengths, dtype=np.int64) * 3,
            document_domains=np.array(labels, dtype=np.int32),
            num_domains=num_domains,
        )

    return make
