"""A synthetic run directory: 4 layers, 32 experts, 12 domains; the imbalance of the first steps goes away."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeworks.config import (
    CorpusConfig,
    LayerPatternConfig,
    ModelConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)
from moeworks.config.codec import to_dict

DOMAINS = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "encodings",
    "html", "importlib", "json", "multiprocessing", "unittest", "xml",
)  # fmt: skip
SAMPLE = (
    'def read(self, size=-1):\n    """Read up to size bytes."""\n    if size < 0:\n        return self._buf\n'
)


def run_config(layers: int = 4, experts: int = 32, *, dense: bool = False, steps: int = 300) -> RunConfig:
    model = ModelConfig(
        num_layers=layers,
        router=RouterConfig(num_experts=experts, top_k=min(2, experts)),
        pattern=LayerPatternConfig(explicit=() if dense else None),
    )
    return RunConfig(model=model, corpus=CorpusConfig(), train=TrainConfig(steps=steps))


def spread(rng: np.random.Generator, layers: int, experts: int, unevenness: float) -> np.ndarray:
    """Probabilities [layers, experts] of an expert; the last expert of layer 2 is nearly dead to the end."""
    share = np.exp(unevenness * rng.standard_normal((layers, experts)))
    if layers > 2:
        share[2, -1] *= 0.02
    return share / share.sum(axis=1, keepdims=True)


def train_line(step: int, counts: np.ndarray) -> dict[str, Any]:
    layers = len(counts)
    loss = 2.4 + 5.2 * float(np.exp(-step / 60))
    shares = counts / counts.sum(axis=1, keepdims=True) if layers else counts
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=-1) / np.log(max(counts.shape[-1], 2))
    balance = {"global_batch": 1 + 0.8 * float(np.exp(-step / 50)), "z": 3.0 - step / 200}
    return {
        "kind": "train", "step": step, "seconds": step * 1.0, "tokens": step * 8192, "loss": loss,
        "learning_rate": 3e-3 * min(1, step / 20) * min(1.0, (301 - step) / 150),
        "grad_norm": 0.4 + float(np.exp(-step / 40)), "tokens_per_second": 8192.0 + 300 * np.sin(step),
        "balance": balance if layers else {},
        "max_vio": [float(c.max() / c.mean() - 1) for c in counts],
        "dead_experts": [int((c == 0).sum()) for c in counts],
        "load_entropy": entropy.tolist() if layers else [], "dropped": [0.0] * layers,
    }  # fmt: skip


def eval_line(step: int, domains: tuple[str, ...] = DOMAINS) -> dict[str, Any]:
    bits = 1.8 + 2.5 * float(np.exp(-step / 90))
    entries = {
        name: {
            "bits_per_byte": bits * (0.8 + 0.04 * i),
            "bytes": 40_000 - 2_500 * (i % 14),
            "tokens": 11_000 - 700 * (i % 14),
        }
        for i, name in enumerate(domains)
    }
    return {
        "kind": "eval", "step": step, "seconds": step * 1.0, "loss": bits * 1.32, "bits_per_byte": bits,
        "domains": entries,
    }  # fmt: skip


def summary_object(
    name: str, counts: dict[str, np.ndarray], layers: int, experts: int, sample: str
) -> dict[str, Any]:
    final = eval_line(300, tuple(counts) or DOMAINS)
    return {
        "name": name, "seconds": 300.1, "steps": 300, "tokens": 2_457_600,
        "parameters": {"total": 10_050_000, "active": 1_130_000},
        "moe_layers": list(range(layers)), "num_experts": experts, "top_k": 2,
        "eval": {key: value for key, value in final.items() if key != "kind"},
        "domain_tokens_per_expert": {domain: matrix.tolist() for domain, matrix in counts.items()},
        "sample": {"prompt": "def ", "text": sample},
        "machine": {"cpu": "Example CPU", "threads": 2, "torch": "2.13.0", "python": "3.11"},
    }  # fmt: skip


RunMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> RunMaker:
    """A function that writes a run directory and returns its path."""

    def make(
        name: str = "first-run", *, layers: int = 4, experts: int = 32, lines: int = 30,
        finished: bool = True, dense: bool = False, domains: tuple[str, ...] = DOMAINS, sample: str = SAMPLE,
    ) -> Path:  # fmt: skip
        directory = tmp_path_factory.mktemp("runs") / "run"
        directory.mkdir()
        rng = np.random.default_rng(0)
        moe_layers = 0 if dense else layers
        config = run_config(layers, experts, dense=dense)
        (directory / "config.json").write_text(json.dumps(to_dict(config)))
        records: list[dict[str, Any]] = []
        for step in range(10, 10 * lines + 1, 10):
            share = spread(rng, moe_layers, experts, 0.12 + 1.1 * np.exp(-step / 50))
            counts = rng.multinomial(163_840, share) if moe_layers else np.zeros((0, experts), dtype=int)
            records.append(train_line(step, counts))
            records += [{"kind": "routing", "step": step, "tokens_per_expert": counts.tolist()}] * bool(
                moe_layers
            )
            records += [eval_line(step, domains)] * (step % 50 == 0)
        if finished:
            records[-1] = eval_line(10 * lines, domains)
            by_domain = {} if dense else {
                domain: rng.multinomial(20_000, spread(rng, layers, experts, 0.5)) for domain in domains
            }  # fmt: skip
            summary = summary_object(name, by_domain, moe_layers, experts, sample)
            (directory / "summary.json").write_text(json.dumps(summary))
        (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return directory

    return make


@pytest.fixture(scope="session")
def moe_run(make_run: RunMaker) -> Path:
    """A finished run; tests must not change it."""
    return make_run()


@pytest.fixture
def config_with() -> Callable[..., RunConfig]:
    """run_config with groups of the model replaced."""

    def make(**groups: object) -> RunConfig:
        config = run_config()
        return replace(config, model=replace(config.model, **groups))  # pyrefly: ignore[bad-argument-type]

    return make
