"""`moeworks eval PATH --data texts/`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from moeworks.cli.options import Dtype, parse_options, refuse_idle
from moeworks.cli.streams import note
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
    """For models with pools of experts: the domain whose experts all texts take; None: that of each text."""
    replay: Path | None = None
    """A trace (moeworks trace) of the same texts, by another model or an earlier checkpoint: every token
    takes its experts from the trace, weighted by this model's routers."""
    context: int | None = None
    """Tokens that the model reads at once. None is 2048, or the most that the model can read if that is less;
    with --replay it is the longest sequence of the trace."""
    stride: int | None = None
    """Tokens between the starts of two windows of a long document. None is the context: windows do not
    overlap."""
    max_tokens: int | None = None
    """Stop after the document in which this many tokens are reached; None reads all."""
    max_bytes: int | None = None
    """Former limit: documents up to about this many bytes of each domain. Use --max-tokens."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval (pip install 'moeworks[lm-eval]'), e.g. hellaswag arc_easy."""
    num_fewshot: int | None = None
    """With --tasks: examples before each question."""
    limit: int | None = None
    """With --tasks: most questions of each task."""
    json: bool = False
    """Print one JSON object instead of tables."""
    batch_tokens: int = 8192
    """Tokens that are read together, about."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dtype: Dtype | None = None
    """Type of the weights; None keeps the checkpoint's."""


_OF_TEXTS = (
    "text_field", "domain_field", "replay", "context", "stride", "max_tokens", "max_bytes",
)  # fmt: skip
_OF_TASKS = ("num_fewshot", "limit")


def parse(argv: list[str]) -> EvalOptions:
    """The options that `argv` spells. Raises ConfigError for values that break a rule or do nothing."""
    options = parse_options(EvalOptions, argv, "moeworks eval")
    check(bool(options.data or options.tasks), "data", options.data, "name texts, or tasks with --tasks")
    if not options.data:
        refuse_idle(options, _OF_TEXTS, "without --data")
    if not options.tasks:
        refuse_idle(options, _OF_TASKS, "without --tasks")
    for name in ("context", "stride", "max_tokens", "max_bytes", "limit", "batch_tokens"):
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "must be at least 1")
    shots = options.num_fewshot
    check(shots is None or shots >= 0, "num_fewshot", shots, "must not be negative")
    if options.max_bytes is not None:
        note("--max-bytes goes in the next release; --max-tokens limits the text of all domains together")
    return options
