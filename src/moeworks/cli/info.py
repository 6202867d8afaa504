"""`moeworks info PATH_OR_PRESET`: what a model is and takes, from its config alone.

--json prints one object: `name`, `family`, `stored`; `layers` and `routing` (null for a dense model) as in
model_words.shape_record; and the fields of moeworks.plan.ModelFigures, among them `parameters.total`,
`parameters.active`, `parameters.active_without_embedding` and `kv_bytes_per_token`, all plain numbers.
`moeworks list models --json` is a list of such objects' `name`, `family` and `parameters`.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.text import Text

from moeworks.cli.amounts import bytes_text, count_text, flops_text
from moeworks.cli.model_words import shape_record, shape_rows
from moeworks.cli.options import parse_options
from moeworks.cli.output import console, facts, grid, notes, print_json
from moeworks.cli.resolve import Described, resolve
from moeworks.errors import ConfigError
from moeworks.families import BY_PRESET
from moeworks.plan.figures import FlopsFigures, ModelFigures, model_figures
from moeworks.plan.formats import FORMATS
from moeworks.records import as_record

DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class InfoOptions:
    """What a model is and takes, from its config alone: no weights are read, no torch is needed."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PATH_OR_PRESET")] = None
    """A folder with a config.json, a run's folder, a config.json, a .gguf file, or the name of a preset."""
    context: int | None = None
    """Tokens of a sequence, for FLOPs and the cache. None is 8192, or the most that the model takes if that
    is less."""
    kv_dtype: str = "bf16"
    """Type of the cache: fp32, bf16 or fp8."""
    json: bool = False
    """Print one JSON object and nothing else."""


def parse(argv: list[str]) -> InfoOptions:
    """The options that `argv` spells. Raises ConfigError when it names no model."""
    options = parse_options(InfoOptions, argv, "moeworks info")
    if options.model is None:
        raise ConfigError("model: missing; name a folder, a config.json or a preset (moeworks list models)")
    return options


def run(options: InfoOptions) -> None:
    """Print what the config says."""
    assert options.model is not None
    described = resolve(options.model)
    context = default_context(described, options.context)
    figures = model_figures(described.model, context, options.kv_dtype)
    if options.json:
        print_json(info_record(described, figures))
    else:
        _print(described, figures)


def default_context(described: Described, asked: int | None) -> int:
    """`asked`, or DEFAULT_CONTEXT where the model has as many positions."""
    return min(DEFAULT_CONTEXT, described.model.max_seq_len) if asked is None else asked


def info_record(described: Described, figures: ModelFigures) -> dict[str, object]:
    """The JSON object of this verb, and the beginning of that of `moeworks plan`."""
    head = {"name": described.name, "family": described.family, "stored": described.stored}
    return head | shape_record(described.model) | as_record(figures)


def headline(described: Described, figures: ModelFigures) -> Text:
    """The model, its family, and its total and active parameters."""
    counts = figures.parameters
    words = f" (family {described.family}): {count_text(counts.total)} parameters, "
    dense = counts.active == counts.total
    words += "dense" if dense else f"{count_text(counts.active)} active per token"
    return Text(described.name, style="bold").append(words, style="not bold")


def _print(described: Described, figures: ModelFigures) -> None:
    out = console()
    out.print(headline(described, figures))
    stored = [("stored as", described.stored)] if described.stored else []
    out.print(notes([*shape_rows(described.model), *stored], style=""))
    counts = figures.parameters
    rows = [("total", f"{counts.total:,}", "all; MTP layers left out" if counts.mtp else "all")]
    rows += [
        (f"  {name}", f"{size:,}", f"{size / counts.total:.1%}")
        for name, size in counts.components.items()
        if size
    ]
    rows.append(("active", f"{counts.active:,}", "per token, embedding and output projection included"))
    rows.append(("", f"{counts.active_without_embedding:,}", "without the input embedding"))
    rows.append(("", f"{counts.active_without_embedding_and_lm_head:,}", "without either"))
    if counts.mtp:
        rows.append(("MTP", f"{counts.mtp:,}", "beside the total"))
    out.print()
    out.print(facts("Parameters", rows))
    out.print()
    out.print(
        facts(
            "Weights",
            [(name, bytes_text(size), FORMATS[name].about) for name, size in figures.weight_bytes.items()],
        )
    )
    out.print()
    out.print(facts(f"Cache in {figures.kv_dtype}", _cache_rows(figures)))
    out.print()
    out.print(facts("FLOPs per token", _flops_rows(figures.flops)))


def _flops_rows(flops: FlopsFigures) -> list[tuple[str, str, str]]:
    context = f"{flops.context:,}"
    return [
        ("decode", flops_text(flops.decode_per_token), f"token {context} of a sequence"),
        ("prefill", flops_text(flops.prefill_per_token), f"mean over a prompt of {context}"),
        ("training", flops_text(flops.training_per_token), f"sequences of {context}, masked pairs counted"),
        ("", flops_text(flops.training_per_token_causal), "masked pairs left out"),
    ]


def _cache_rows(figures: ModelFigures) -> list[tuple[str, str, str]]:
    context, token, expanded = (
        figures.flops.context,
        figures.kv_bytes_per_token,
        figures.kv_bytes_per_token_expanded,
    )
    rows = [("per token", f"{token:,} B", "all layers")]
    if expanded != token:
        rows.append(("", f"{expanded:,} B", f"expanded to every head, {expanded / token:.0f} times as much"))
    size = figures.cache_bytes_per_sequence
    about = f"{context:,} tokens"
    if size != token * context:
        about += f", {size / (token * context):.1%} of the above: windows, chunks or states" if token else ""
    return [*rows, ("sequence", bytes_text(size), about)]


def print_list(matching: str, *, as_json: bool) -> None:
    """Print the published models whose names contain `matching`."""
    presets = [resolve(name) for name in sorted(BY_PRESET) if matching in name]
    figures = [model_figures(entry.model, 1) for entry in presets]
    if as_json:
        print_json([
            {"name": entry.name, "family": entry.family, "parameters": as_record(figure.parameters)}
            for entry, figure in zip(presets, figures, strict=True)
        ])  # fmt: skip
        return
    rows = []
    for entry, figure in zip(presets, figures, strict=True):
        moe, counts = entry.model.moe, figure.parameters
        routed = f"{moe.top_k} of {moe.num_experts}" if entry.model.moe_layers else "dense"
        routed += f" + {moe.num_shared_experts}" if moe.num_shared_experts and entry.model.moe_layers else ""
        rows.append([
            entry.name, count_text(counts.total), count_text(counts.active), routed,
            str(entry.model.num_layers), f"{figure.kv_bytes_per_token:,}",
        ])  # fmt: skip
    header = ["preset", "parameters", "active", "experts", "layers", "cache B/token"]
    console().print(grid("", header, rows))
