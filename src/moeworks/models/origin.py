"""Where a model's weights came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Checkpoint that a model was loaded from; saving keeps the metadata that the model itself lacks."""

    family: str | None
    """Name of the published checkpoint's family; None for a run."""
    config: Mapping[str, Any]
    """The published checkpoint's config.json; empty for a run."""
    path: Path | None = None
    """The published folder, the GGUF file, or the checkpoint of a run."""
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """The files of a published folder that make its tokenizer and say how to generate, as they were then."""
