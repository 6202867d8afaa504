"""Cells: one training of one arm with one seed, and its file.

A cell's file is named by a hash of everything that its content depends on, so that a lab that was
interrupted goes on where it was, and never takes a cell of another setting for its own.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.config import RunConfig
from moeworks.config.codec import to_dict
from moeworks.errors import DataError
from moeworks.files import make_folder, write_atomically
from moeworks.labs.lab import Lab, Probe
from moeworks.labs.setting import arm_config, training_flops

FORMAT = 1
"""Version of what a cell measures; a change makes older files unused."""


@dataclass(frozen=True)
class HeldOutSize:
    """How much held-out text a cell is judged on."""

    documents: int = 160
    """At most so many, spread evenly."""
    tokens: int = 1024
    """Of each document its first ones: many documents say more than long ones."""


@dataclass(frozen=True)
class Cell:
    """All that a worker needs to know."""

    lab: str
    arm: str
    seed: int
    config: RunConfig
    router_in_bfloat16: bool
    probes: tuple[Probe, ...]
    held_out: HeldOutSize
    corpus: str
    """Fingerprint of the prepared corpus."""
    environment: Mapping[str, str]
    """Versions that the arithmetic depends on."""

    @property
    def key(self) -> str:
        """A hash of all that decides about the content, but not of where the texts and caches lie."""
        config = to_dict(self.config)
        del config["data"], config["corpus"]["cache_dir"]
        decides = {
            "format": FORMAT,
            "config": config,
            "router_in_bfloat16": self.router_in_bfloat16,
            "probes": self.probes,
            "held_out": vars(self.held_out),
            "corpus": self.corpus,
            "environment": dict(self.environment),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, folder: Path) -> Path:
        """Its file below the lab's folder."""
        name = re.sub(r"[^a-z0-9.]+", "-", self.arm.lower())
        return folder / "cells" / f"{name}-{self.seed}-{self.key}.json"

    @property
    def work(self) -> float:
        """FLOPs of its training, for the time that is left."""
        train = self.config.train
        return float(training_flops(self.config) * train.steps * train.batch_size * train.seq_len)


def lab_cells(
    lab: Lab,
    data: tuple[str, ...],
    *,
    steps: int,
    seeds: int,
    held_out: HeldOutSize,
    corpus: str,
    environment: Mapping[str, str],
    cache_dir: str | None = None,
) -> list[Cell]:
    """All cells of a lab, seed by seed, so that after each seed there is a comparison."""
    return [
        Cell(
            lab=lab.name,
            arm=arm.name,
            seed=seed,
            config=arm_config(lab, arm, data, steps=steps, seed=seed, cache_dir=cache_dir),
            router_in_bfloat16=arm.router_in_bfloat16,
            probes=lab.probes,
            held_out=held_out,
            corpus=corpus,
            environment=environment,
        )
        for seed in range(seeds)
        for arm in lab.arms
    ]


def write_cell(path: Path, record: Mapping[str, Any]) -> None:
    """Write a finished cell. Raises DataError when the disk refuses."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made: {error.strerror}") from error
    write_atomically(path, json.dumps(record, allow_nan=False).encode())


def read_cell(path: Path) -> dict[str, Any] | None:
    """What write_cell wrote; None where there is no file. Raises DataError for anything else."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a cell of a lab; remove it, and it is measured again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path}: not a cell of this version; remove it, and it is measured again")
    return record
