"""Two processes, started once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import world_scenarios
from tiny_run import tiny_config, tiny_corpus, write_texts

from moeworks.data.shards import PreparedCorpus

Torchrun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts; its neighbour `cache` holds the prepared corpus."""
    return write_texts(tmp_path_factory.mktemp("world") / "texts")


@pytest.fixture(scope="session")
def corpus(texts: Path) -> PreparedCorpus:
    """The corpus of tiny_config(texts)."""
    return tiny_corpus(tiny_config(texts))


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    """Start two processes, on one thread each, and wait for them."""

    def start(*command: str) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(world_scenarios.__file__).parent),
        }
        return subprocess.run(
            [*launcher, *command], capture_output=True, text=True, env=environment, timeout=300
        )

    return start


@pytest.fixture(scope="session")
def two_ranks(
    texts: Path, corpus: PreparedCorpus, torchrun: Torchrun, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the two processes of world_scenarios have written to."""
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(world_scenarios.__file__, str(texts), str(out))
    assert done.returncode == 0, done.stderr
    return out
