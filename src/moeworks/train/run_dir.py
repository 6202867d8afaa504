"""The files of a run.

runs/NAME/
  config.json        the RunConfig
  tokenizer.json     the tokenizer, as the tokenizers library writes it
  metrics.jsonl      one JSON object a line: kinds train, routing, eval (see metrics.py)
  checkpoints/       step-00000100/ ...
  summary.json       what the run ended with
  report.html        the page
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.config import RunConfig
from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import CheckpointError


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def save_config(self, config: RunConfig) -> None:
        """Create the folder and write config.json."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.config, to_dict(config))

    def load_config(self) -> RunConfig:
        """Raises CheckpointError when this is no run folder."""
        if not self.config.is_file():
            raise CheckpointError(f"{self.root}: not a run: it has no config.json")
        try:
            return from_dict(RunConfig, json.loads(self.config.read_text("utf-8")))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{self.config}: not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(part, path)
