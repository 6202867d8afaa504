"""Trainers of runs, on a backend of one's choice."""

import tempfile
from pathlib import Path
from typing import Any

import moeworks
from moeworks.config import CorpusConfig, RunConfig
from moeworks.data.shards import prepare
from moeworks.errors import ConfigError
from moeworks.models.decoder import moe_modules
from moeworks.ops.backends import Backend
from moeworks.parallel.world import World
from moeworks.train.trainer import Trainer
from suite.registry import RefusedError

QUICK_DATA: dict[str, Any] = dict(
    data=(str(Path(moeworks.__file__).parent / "ops"),),
    corpus=CorpusConfig(tokenizer="bytes", cache_dir=str(Path(tempfile.gettempdir(), "moeworks-benchmarks"))),
)
"""Fields of a RunConfig for --quick: a few of our own files, as bytes."""


def our_trainer(config: RunConfig, backend: Backend = "auto") -> Trainer:
    """A trainer before its first step, on the CPU. Raises RefusedError when the backend does not serve it."""
    corpus = prepare(config.data, config.corpus, config.model.vocab_size)
    trainer = Trainer(config, corpus, World())
    for moe in moe_modules(trainer.model):
        moe.experts.backend = backend
        try:
            moe.explain_backend(trainer.model.embed.weight)
        except ConfigError as error:
            raise RefusedError(str(error)) from error
    return trainer
