"""Where a model's weights came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """The published checkpoint that a model was loaded from; saving keeps what it says beyond the model."""

    family: str
    """Name of its family."""
    config: Mapping[str, Any]
    """Its config.json."""
    folder: Path | None = None
    """Where it lay; tokenizer files are copied from there."""
