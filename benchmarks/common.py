"""What every benchmark writes beside its figures."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from moeworks.cli.summary import cpu_name

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, threads, versions and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write results/NAME.json with the machine, and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", "utf-8")
    return path
