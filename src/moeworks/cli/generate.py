"""`moeworks generate runs/NAME "prompt"`: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moeworks.config.generate import SamplingConfig
from moeworks.errors import check


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a text with a trained model; the text streams to standard output."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or one of its checkpoints."""
    prompt: tyro.conf.Positional[str]
    """The text to continue."""
    max_new_tokens: int = 100
    """Tokens to write at most."""
    seed: int = 0
    """Seed of the draws."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)


def parse(argv: list[str]) -> GenerateOptions:
    """The options that `argv` spells."""
    options = tyro.cli(GenerateOptions, prog="moeworks generate", args=argv)
    check(options.max_new_tokens >= 0, "max_new_tokens", options.max_new_tokens, "must not be negative")
    return options
