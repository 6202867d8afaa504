"""`moeworks trace runs/NAME --data texts/ -o trace.parquet`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moeworks.errors import check
from moeworks.trace.header import LayerField


@dataclass(frozen=True)
class TraceOptions:
    """Record which experts a model chooses for every token of some texts, as one Parquet file."""

    model: tyro.conf.Positional[Path]
    """A run's folder, or one of its checkpoints."""
    data: tuple[str, ...]
    """Texts: files, folders, globs, 'stdlib:' or 'hf:NAME', as for training; the domains are theirs."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("trace.parquet")
    """The trace; it appears when it is whole."""
    max_tokens: int | None = None
    """Stop after about this many tokens; None reads all."""
    seq_len: int | None = None
    """Longest context: longer documents are cut. None is what the model was trained with."""
    batch_size: int = 16
    """Sequences in one forward pass."""
    fields: tuple[LayerField, ...] = ("weights", "entropy", "margin")
    """What to record beside the expert ids; logits take 2 bytes an expert, token and layer."""
    text_field: str = "text"
    """Field (jsonl) or column (parquet, Hugging Face) with the text."""
    domain_field: str | None = None
    """Field with the domain label; None labels by folders and file names."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    json: bool = False
    """Print the summary as one JSON object and nothing else."""


def parse(argv: list[str]) -> TraceOptions:
    """The options that `argv` spells. Raises ConfigError for a value that breaks a rule."""
    options = tyro.cli(TraceOptions, prog="moeworks trace", args=argv)
    check(bool(options.data), "data", options.data, "names no text")
    check(options.batch_size >= 1, "batch_size", options.batch_size, "must be at least 1")
    for name in ("max_tokens", "seq_len"):
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "must be at least 1, or None")
    return options
