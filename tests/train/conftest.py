"""One tiny corpus for all tests of training."""

from pathlib import Path

import pytest
from tiny_run import tiny_config, tiny_corpus, write_texts

from moeworks.data.shards import PreparedCorpus


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts; its neighbour `cache` holds the prepared corpus."""
    return write_texts(tmp_path_factory.mktemp("tiny") / "texts")


@pytest.fixture(scope="session")
def corpus(texts: Path) -> PreparedCorpus:
    """The corpus of tiny_config(texts)."""
    return tiny_corpus(tiny_config(texts))
