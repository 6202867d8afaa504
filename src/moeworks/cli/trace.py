"""`moeworks trace runs/NAME --data texts/ -o trace.parquet`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moeworks.errors import ConfigError, check
from moeworks.trace.header import LayerField


@dataclass(frozen=True)
class TraceOptions:
    """Record which experts a model chooses for every token of some texts, as one Parquet file."""

    model: tyro.conf.Positional[Path]
    """A run's folder, one of its checkpoints, a published checkpoint's folder, or a GGUF file; with --dump
    another engine's file."""
    data: tuple[str, ...] = ()
    """Texts: files, folders, globs, 'stdlib:' or 'hf:NAME', as for training; the domains are theirs."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("trace.parquet")
    """The trace; it appears when it is whole."""
    max_tokens: int | None = None
    """Stop after about this many tokens; None reads all."""
    seq_len: int | None = None
    """Longest context: longer documents are cut. None is what a run was trained with, or 2,048."""
    batch_size: int = 16
    """Sequences in one forward pass."""
    fields: tuple[LayerField, ...] = ("weights", "entropy", "margin")
    """What to record beside the expert ids; logits take 2 bytes an expert, token and layer."""
    text_field: str = "text"
    """Field (jsonl) or column (parquet, Hugging Face) with the text."""
    domain_field: str | None = None
    """Field with the domain label; None labels by folders and file names."""
    domain: str | None = None
    """For models with pools of experts: all texts have those of this domain; None: of their own."""
    engine: Literal["auto", "moeworks", "transformers"] = "auto"
    """Who runs the model; auto takes transformers for families that moeworks does not know."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dump: Literal["vllm", "sglang", "arrays"] | None = None
    """Convert a dump instead (docs/trace-format.md): vLLM's routed experts, SGLang's expert distribution
    recorder, or arrays of ids in an .npz."""
    num_experts: int | None = None
    """With --dump vllm or arrays: experts of the model, which the dump does not tell."""
    layers: tuple[int, ...] | None = None
    """With --dump vllm or arrays: the MoE layers; None takes what is not filler, or numbers them from 0."""
    name: str = "unknown"
    """With --dump: name of the model."""
    json: bool = False
    """Print the summary as one JSON object and nothing else."""


_CONVERSION = ("num_experts", "layers", "name")
_RECORDING = (
    "data", "max_tokens", "seq_len", "batch_size", "fields", "text_field", "domain_field", "domain",
    "engine", "device",
)  # fmt: skip


def parse(argv: list[str]) -> TraceOptions:
    """The options that `argv` spells. Raises ConfigError for values that break a rule or do nothing."""
    options = tyro.cli(TraceOptions, prog="moeworks trace", args=argv)
    default = TraceOptions(options.model)
    idle = _CONVERSION if options.dump is None else _RECORDING
    if options.dump == "sglang":
        idle += ("num_experts", "layers")
    for name in idle:
        if getattr(options, name) != getattr(default, name):
            mode = "without --dump" if options.dump is None else f"with --dump {options.dump}"
            raise ConfigError(f"--{name.replace('_', '-')} has no effect {mode}")
    if options.dump in ("vllm", "arrays"):
        check(options.num_experts is not None, "num_experts", None, f"--dump {options.dump} needs it")
    if options.dump is None:
        check(bool(options.data), "data", options.data, "names no text: give --data")
    check(options.batch_size >= 1, "batch_size", options.batch_size, "must be at least 1")
    for name in ("max_tokens", "seq_len"):
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "must be at least 1, or None")
    return options
