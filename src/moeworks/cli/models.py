"""Loading the model that a verb was given."""

from pathlib import Path

import torch

from moeworks.cli.options import LONG_DTYPES
from moeworks.config.pools import type_named
from moeworks.errors import check
from moeworks.models.decoder import Decoder
from moeworks.pretrained import load


def load_model(path: Path, device: str, dtype: str | None, domain: str | None = None) -> Decoder:
    """The model at `path`; `domain` is the type of all tokens, for one with pools of experts.

    Raises ConfigError for a device that this machine lacks, and for a domain that the model has no pool for.
    """
    check_device(device)
    kind = None if dtype is None else getattr(torch, LONG_DTYPES.get(dtype, dtype))
    model = load(path, device=device, dtype=kind)
    if domain is not None:
        model.token_type = type_named(model.config.router, domain)
    return model


def check_device(device: str) -> None:
    """Raise ConfigError unless this machine has `device`."""
    check(device == "cpu" or torch.cuda.is_available(), "device", device, "torch finds no GPU here")
