"""What comes out: JSON with every sample and where it was taken, and tables."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moeworks.cli.summary import cpu_name
from moeworks.files import write_atomically
from suite.registry import Case, Operation, Settings
from suite.runner import Measured
from suite.workers import cores, threads_of

FORMAT = 1
FOLDER = Path(__file__).parent.parent / "results"
_PACKAGES = ("moeworks", "numpy", "transformers", "st-moe-pytorch", "tutel")

Record = dict[str, Any]


def machine() -> Record:
    """Processor, memory, versions and commit."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_result(name: str, figures: Record) -> Path:
    """Write results/NAME.json with the machine, and return its path."""
    path = FOLDER / f"{name}.json"
    write_json(path, {"machine": machine(), **figures})
    return path


def write_json(path: Path, value: Record) -> None:
    """Write `value`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8"))


def run_record(settings: Settings) -> Record:
    """The head of a JSON file; operations are appended to it as they are measured."""
    shown = {**asdict(settings), "data": settings.data is not None}  # whose folders are whose is no result
    return {"format": FORMAT, "machine": machine(), "settings": shown, "operations": []}


def operation_record(operation: Operation, settings: Settings, rounds: int) -> Record:
    """An operation without its cases yet."""
    return {
        "name": operation.name,
        "summary": operation.summary,
        "unit": operation.unit,
        "higher_is_better": operation.higher_is_better,
        "reference": operation.reference,
        "mode": operation.mode,
        "rounds": rounds,
        "threads": threads_of(operation, settings),
        "cases": [],
    }


def case_record(operation: Operation, case: Case, measured: list[Measured]) -> Record:
    """A case with every sample, medians and ratios."""
    samples = {entry.arm.name: entry.samples for entry in measured}
    arms = []
    for entry in measured:
        over = entry.arm.over or operation.reference
        arms.append(
            {
                "name": entry.arm.name,
                "ours": entry.arm.ours,
                "samples": entry.samples,
                **_spread(entry.samples),
                "over": over,
                "ratio": ratio(entry.samples, samples.get(over or "", [])),
                "fingerprint": list(entry.ready.fingerprint),
                "agrees": entry.agrees,
                "slow": entry.slow,
                "refused": entry.ready.refused,
                "failed": entry.ready.failed,
            }
        )
    return {"name": case.name, "shape": case.shape, "arms": arms}


def ratio(samples: list[float], others: list[float]) -> Record | None:
    """Median and quartiles of the ratios of the samples that were taken in the same rounds.

    Neighbours in time share the machine's mood, so their ratio holds still where their medians drift. A
    single sample has no neighbours and is held against the others' median.
    """
    if len(samples) == 1 and others:
        others = [statistics.median(others)]
    ratios = [a / b for a, b in zip(samples, others, strict=False) if b]
    return _spread(ratios) if ratios else None


def _spread(values: list[float]) -> Record:
    if not values:
        return {"median": None, "quartiles": None}
    if len(values) == 1:
        return {"median": values[0], "quartiles": [values[0], values[0]]}
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "quartiles": [low, high]}


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=FOLDER.parent)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
