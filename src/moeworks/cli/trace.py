"""`moeworks trace runs/NAME --data texts/ -o trace.parquet`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moeworks.cli.options import Dtype, parse_options, refuse_idle
from moeworks.errors import check
from moeworks.trace.header import LayerField


@dataclass(frozen=True)
class TraceOptions:
    """Record which experts a model chooses for every token of some texts, as one Parquet file."""

    model: tyro.conf.Positional[Path]
    """A run's folder, one of its checkpoints, a published checkpoint's folder, or a GGUF file; with --dump
    the file of another engine."""
    data: tuple[str, ...] = ()
    """Texts: files, folders, globs, 'stdlib:' or 'hf:NAME', with the same domains as in training."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("trace.parquet")
    """File of the trace; it appears when it is complete."""
    max_tokens: int | None = None
    """Record the first tokens, this many; None records all."""
    context: int | None = None
    """Longest sequence, in tokens: longer documents are cut. None is the one that a run was trained with, or
    2,048."""
    batch_size: int = 16
    """Sequences in one forward pass."""
    fields: tuple[LayerField, ...] = ("weights", "entropy", "margin")
    """Values to record beside the expert ids; logits take 2 bytes per expert, token and layer."""
    text_field: str = "text"
    """Field (jsonl) or column (parquet, Hugging Face) with the text."""
    domain_field: str | None = None
    """Field with the domain label; None labels by folders and file names."""
    domain: str | None = None
    """For models with pools of experts: the domain whose experts all texts take; None: that of each text."""
    engine: Literal["auto", "moeworks", "transformers"] = "auto"
    """Software that runs the model; auto takes transformers for families that moeworks does not know."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    dtype: Dtype | None = None
    """Type of the weights, with the engine moeworks; None keeps the checkpoint's."""
    dump: Literal["vllm", "sglang", "arrays"] | None = None
    """Convert a dump instead of recording (docs/trace-format.md): vLLM's routed experts, SGLang's expert
    distribution recorder, or arrays of ids in an .npz."""
    num_experts: int | None = None
    """With --dump vllm or arrays: number of experts of the model, which the dump does not hold."""
    layers: tuple[int, ...] | None = None
    """With --dump vllm or arrays: the MoE layers; None takes those that are not filler, or numbers them from
    0."""
    name: str = "unknown"
    """With --dump: name of the model."""
    json: bool = False
    """Print the summary as one JSON object and nothing else."""


_CONVERSION = ("num_experts", "layers", "name")
_RECORDING = (
    "data", "max_tokens", "context", "batch_size", "fields", "text_field", "domain_field", "domain",
    "engine", "device", "dtype",
)  # fmt: skip


def parse(argv: list[str]) -> TraceOptions:
    """The options that `argv` spells. Raises ConfigError for values that break a rule or do nothing."""
    options = parse_options(TraceOptions, argv, "moeworks trace")
    if options.dump is None:
        refuse_idle(options, _CONVERSION, "without --dump")
    else:
        refuse_idle(options, _RECORDING, f"with --dump {options.dump}")
    if options.dump == "sglang":
        refuse_idle(options, ("num_experts", "layers"), "with --dump sglang")
    if options.dump in ("vllm", "arrays"):
        check(options.num_experts is not None, "num_experts", None, f"--dump {options.dump} needs it")
    if options.dump is None:
        check(bool(options.data), "data", options.data, "names no text: give --data")
    check(options.batch_size >= 1, "batch_size", options.batch_size, "must be at least 1")
    for name in ("max_tokens", "context"):
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "must be at least 1, or None")
    return options
