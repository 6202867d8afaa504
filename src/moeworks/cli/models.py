"""Loading the model that a verb was given."""

from pathlib import Path

import torch

from moeworks.errors import check
from moeworks.models.decoder import Decoder
from moeworks.pretrained import load


def load_model(path: Path, device: str, dtype: str | None) -> Decoder:
    """The model at `path`. Raises ConfigError for a device that is not there."""
    check(device == "cpu" or torch.cuda.is_available(), "device", device, "torch finds no GPU here")
    return load(path, device=device, dtype=None if dtype is None else getattr(torch, dtype))
