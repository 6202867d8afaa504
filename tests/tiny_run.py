"""A run that takes milliseconds a step, its texts and its corpus, for tests of training and after."""

import resource
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moeworks.config import (
    BalanceConfig,
    CorpusConfig,
    ExpertsConfig,
    GQAConfig,
    ModelConfig,
    OptimizerConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)
from moeworks.data.batches import Batch
from moeworks.data.shards import PreparedCorpus, prepare
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.parallel.world import World
from moeworks.train.trainer import Trainer

BYTES = 264
"""Vocabulary of the tiny model: the byte tokenizer's 257 tokens and a few that never occur."""


def write_texts(root: Path, documents: int = 30) -> Path:
    """Short documents in two top folders, about 5 kB."""
    for number in range(documents):
        folder = root / ("poems" if number % 3 else "notes")
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{number} and {word} make line {word}\n" for word in range(number % 7 + 3))
        (folder / f"{number:02}.md").write_text(f"# Text {number}\n\n{lines}")
    return root


def tiny_config(texts: Path, **groups: Any) -> RunConfig:
    """A float64 run on one thread; `groups` override fields: train=dict(steps=3), router=dict(top_k=1)."""
    router = RouterConfig(**dict(num_experts=4, top_k=2, selection_bias=True) | groups.pop("router", {}))
    model = ModelConfig(
        **dict(
            vocab_size=BYTES,
            d_model=16,
            num_layers=2,
            max_seq_len=64,
            attention=GQAConfig(num_heads=2, num_kv_heads=1),
            router=router,
            experts=ExpertsConfig(d_expert=12),
        )
        | groups.pop("model", {})
    )
    balance = dict(global_batch_coef=0.05, sequence_coef=0.02, z_coef=0.01, bias_rule="sign", bias_rate=0.01)
    train = dict(
        steps=6, batch_size=8, seq_len=16, precision="float64", device="cpu", threads=1, log_every=2,
        eval_every=3, checkpoint_every=2, sample_tokens=4, sample_prompt="#",
    )  # fmt: skip
    corpus = CorpusConfig(tokenizer="bytes", validation_fraction=0.2, cache_dir=str(texts.parent / "cache"))
    return RunConfig(
        data=(str(texts),),
        corpus=replace(corpus, **groups.pop("corpus", {})),
        model=model,
        balance=BalanceConfig(**balance | groups.pop("balance", {})),
        optimizer=OptimizerConfig(**dict(warmup_steps=2) | groups.pop("optimizer", {})),
        train=TrainConfig(**train | groups.pop("train", {})),
        **groups,
    )


def tiny_corpus(config: RunConfig) -> PreparedCorpus:
    return prepare(config.data, config.corpus, config.model.vocab_size)


def tiny_trainer(config: RunConfig, corpus: PreparedCorpus) -> Trainer:
    return Trainer(config, corpus, World())


def random_batch(rows: int = 4, length: int = 12, *, padding: bool = True, seed: int = 1) -> Batch:
    """Random tokens in packed documents; with `padding` each row ends in another number of invalid tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(BYTES, (rows, length + 1), generator=generator)
    documents = torch.randint(2, (rows, length), generator=generator).cumsum(dim=1)
    lengths = length - 2 * torch.arange(rows)[:, None] if padding else torch.full((rows, 1), length)
    return Batch(
        tokens_BL=tokens[:, :-1],
        targets_BL=tokens[:, 1:],
        document_ids_BL=documents,
        domain_ids_BL=torch.zeros(rows, length, dtype=torch.int64),
        valid_BL=torch.arange(length)[None, :] < lengths,
    )


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """The rows of a batch in `parts` micro-batches."""
    pieces = {
        name: value.chunk(parts) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    return [Batch(**{name: value[i] for name, value in pieces.items()}) for i in range(parts)]


def gradients_of(model: Decoder) -> dict[str, torch.Tensor]:
    """Copies of the gradients by name; a missing one is 0."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def biases_of(model: Decoder) -> torch.Tensor:
    """A copy of every layer's expert_bias, [layers, E]."""
    return torch.stack([moe.router.expert_bias.clone() for moe in moe_modules(model)])


def all_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of everything that a checkpoint holds in tensors: weights, biases, optimizer."""
    tensors, _ = trainer.state()
    return {f"{file}/{name}": t.clone() for file, named in tensors.items() for name, t in named.items()}


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert left.keys() == right.keys()
    return [name for name, value in left.items() if not torch.equal(value, right[name])]


@contextmanager
def full_disk(room: int = 0) -> Generator[None]:
    """No file can grow beyond `room` bytes here: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
