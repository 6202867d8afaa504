"""What `moeworks generate` does."""

import sys
from pathlib import Path

import torch

from moeworks.checkpoint import read_checkpoint
from moeworks.cli.generate import GenerateOptions
from moeworks.data.tokenizer import Tokenizer, load_tokenizer
from moeworks.errors import CheckpointError, check
from moeworks.generate.loop import generate
from moeworks.pretrained import find_checkpoint, load


def run(options: GenerateOptions) -> int:
    """Load the model and stream the text."""
    has_device = options.device == "cpu" or torch.cuda.is_available()
    check(has_device, "device", options.device, "torch finds no GPU here")
    directory = find_checkpoint(options.model)
    model = load(directory, device=options.device)
    tokenizer = run_tokenizer(directory)
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


def run_tokenizer(checkpoint: Path) -> Tokenizer:
    """The run's tokenizer. Raises CheckpointError when it is not the one that the model was trained with."""
    path = checkpoint.resolve().parent.parent / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    trained_with = read_checkpoint(checkpoint, verify=False).state["tokenizer"]
    if tokenizer.fingerprint != trained_with["fingerprint"]:
        raise CheckpointError(
            f"{path}: its vocabulary of {tokenizer.vocab_size} does not fit the checkpoint, whose model was"
            f" trained with another tokenizer, of {trained_with['vocab_size']}"
        )
    return tokenizer
