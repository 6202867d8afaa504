"""`moeworks generate runs/NAME "prompt"`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from moeworks.data.tokenizer import Tokenizer, load_tokenizer
from moeworks.errors import CheckpointError, check
from moeworks.generate.loop import generate
from moeworks.generate.sampling import SamplingConfig
from moeworks.models.decoder import Decoder
from moeworks.pretrained import find_checkpoint, load


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


def run(argv: list[str]) -> int:
    """Load the model and stream the text."""
    options = tyro.cli(GenerateOptions, prog="moeworks generate", args=argv)
    check(options.max_new_tokens >= 0, "max_new_tokens", options.max_new_tokens, "must not be negative")
    has_device = options.device == "cpu" or torch.cuda.is_available()
    check(has_device, "device", options.device, "torch finds no GPU here")
    directory = find_checkpoint(options.model)
    model = load(directory, device=options.device)
    tokenizer = _tokenizer(directory, model)
    prompt = [tokenizer.end_of_text_id, *tokenizer.encode(options.prompt).tolist()]
    ids = generate(
        model,
        prompt,
        options.max_new_tokens,
        sampling=options.sampling,
        seed=options.seed,
        stop_id=tokenizer.end_of_text_id,
    )
    written: list[int] = []
    shown = ""
    sys.stdout.write(options.prompt)
    for token in ids:
        written.append(token)
        text = tokenizer.decode(written)
        # A character may take several tokens: hold the text back until it is whole.
        if not text.endswith("\ufffd"):
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write(tokenizer.decode(written)[len(shown) :] + "\n")
    return 0


def _tokenizer(checkpoint: Path, model: Decoder) -> Tokenizer:
    """The run's tokenizer. Raises CheckpointError when its ids do not fit the model's embedding."""
    path = checkpoint.resolve().parent.parent / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{path}: its vocabulary of {tokenizer.vocab_size} does not fit the checkpoint, whose model has"
            f" vocab_size = {model.config.vocab_size}"
        )
    return tokenizer
