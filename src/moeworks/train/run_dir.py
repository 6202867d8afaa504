"""The files of a run.

runs/NAME/
  config.json        the RunConfig
  tokenizer.json     the tokenizer, as the tokenizers library writes it
  metrics.jsonl      one JSON object a line: kinds train, routing, alarm, eval (see metrics.py)
  checkpoints/       step-00000100/ ...
  summary.json       what the run ended with
  report.html        the page
"""

import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.config import RunConfig
from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import CheckpointError, ConfigError
from moeworks.files import LOCK, locked, make_folder, refused, write_atomically
from moeworks.records import json_text


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

    @contextmanager
    def locked(self) -> Generator[bool]:
        """Make the folder if need be and keep other processes from training in it; yields whether it is new.

        Raises DataError when another process trains there, or the disk refuses.
        """
        with ExitStack() as stack:
            try:
                is_new = make_folder(self.root)
                stack.enter_context(locked(self.root))
            except OSError as error:
                raise refused(self.root, error) from error
            yield is_new

    def is_empty(self) -> bool:
        """Whether the folder holds nothing but our lock."""
        return all(path.name == LOCK for path in self.root.iterdir())

    def save_config(self, config: RunConfig) -> None:
        """Create the folder and write config.json. Raises DataError when the disk refuses."""
        try:
            make_folder(self.root)
        except OSError as error:
            raise refused(self.root, error) from error
        write_json(self.config, to_dict(config))

    def discard(self, *, folder: bool) -> None:
        """Delete the files that a start wrote before its first step and, with `folder`, the folder too,
        unless it holds something else by now."""
        with suppress(OSError):
            for path in (self.config, self.tokenizer, self.metrics):
                path.unlink(missing_ok=True)
            if folder and self.is_empty():
                (self.root / LOCK).unlink(missing_ok=True)
                self.root.rmdir()

    def load_config(self) -> RunConfig:
        """The run's config. Raises CheckpointError without a config.json, and for one that cannot be read."""
        if not self.config.is_file():
            raise CheckpointError(f"{self.root}: not a run: it has no config.json")
        try:
            return from_dict(RunConfig, json.loads(self.config.read_text("utf-8")))
        except ConfigError as error:
            raise CheckpointError(f"{self.config}: {error}") from error
        except ValueError as error:
            raise CheckpointError(f"{self.config}: not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one, never a part.

    Raises DataError when the disk refuses.
    """
    write_atomically(path, (json_text(value, indent=1, ascii_only=True) + "\n").encode())
