"""Runs that the tests of several verbs share, made once by the command itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import write_texts

from moeworks.cli.main import main

Train = Callable[..., int]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts; its neighbour `cache` holds the prepared corpus."""
    return write_texts(tmp_path_factory.mktemp("cli") / "texts")


@pytest.fixture(scope="session")
def fields(texts: Path) -> list[str]:
    """Options that make any preset train on the texts, on one thread."""
    cache = str(texts.parent / "cache")
    return [
        "--data",
        str(texts),
        "--corpus.cache-dir",
        cache,
        "--train.threads",
        "1",
        "--train.device",
        "cpu",
    ]


@pytest.fixture(scope="session")
def finished(fields: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that has ended; not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    assert main(["train", "smoke", *fields, "--out", str(out), "--name", "first"]) == 0
    return out / "first"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def halfway(copied: Path) -> Path:
    """The run as it was after step 6, where its first checkpoint is."""
    shutil.rmtree(copied / "checkpoints" / "step-00000012")
    for name in ("summary.json", "report.html"):
        (copied / name).unlink()
    return copied
