"""`moeworks eval PATH --data texts/`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from moeworks.errors import check


@dataclass(frozen=True)
class EvalOptions:
    """Bits per byte and perplexity of a model on texts, per domain; and the tasks of lm-eval."""

    model: tyro.conf.Positional[Path]
    """A run's folder or one of its checkpoints, a published checkpoint's folder, or a .gguf file."""
    data: tuple[str, ...] = ()
    """Files, folders (each subfolder is a domain), globs, "stdlib:", or "hf:NAME"."""
    text_field: str = "text"
    """Field of .jsonl and column of .parquet files that holds the text."""
    domain_field: str | None = None
    """Field with the domain; without it the folder or the file names it."""
    domain: str | None = None
    """For models with pools of experts: all texts have those of this domain; None: of their own."""
    replay: Path | None = None
    """A trace (moeworks trace) of the same texts, by another model or an earlier checkpoint: every token has
    the experts that it has there, weighted by this model's routers."""
    context: int | None = None
    """Tokens that the model reads at once; None: 2048, or all that the model can read if that is less; with
    --replay the longest sequence of the trace."""
    stride: int | None = None
    """Tokens between two windows of a long document; None: the context, so that windows do not overlap."""
    max_bytes: int | None = None
    """Take documents up to about so many bytes of each domain."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval (pip install 'moeworks[lm-eval]'), e.g. hellaswag arc_easy."""
    num_fewshot: int | None = None
    """With --tasks: examples before each question."""
    limit: int | None = None
    """With --tasks: questions of each task at most."""
    json: bool = False
    """Print one JSON object instead of tables."""
    batch_tokens: int = 8192
    """About so many tokens are read together."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; None keeps the checkpoint's."""


def parse(argv: list[str]) -> EvalOptions:
    """The options that `argv` spells."""
    options = tyro.cli(EvalOptions, prog="moeworks eval", args=argv)
    check(bool(options.data or options.tasks), "data", options.data, "name texts, or tasks with --tasks")
    for name in ("context", "stride", "max_bytes", "limit", "batch_tokens"):
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "must be at least 1")
    check(options.replay is None or bool(options.data), "replay", str(options.replay), "goes with --data")
    shots = options.num_fewshot
    check(shots is None or shots >= 0, "num_fewshot", shots, "must not be negative")
    return options
