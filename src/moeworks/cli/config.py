"""`moeworks config`: every field of a run's config with its value and meaning, and what it counts to."""

import json
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeworks.cli.arguments import Parsed
from moeworks.cli.arguments import parse as parse_run
from moeworks.config.codec import to_dict
from moeworks.config.count import count_flops, count_kv_bytes, count_parameters
from moeworks.config.explain import explain
from moeworks.config.presets import PRESETS
from moeworks.config.run import RunConfig

FLOAT32_BYTES = 4
PIPED_WIDTH = 160


@dataclass(frozen=True)
class ConfigOptions:
    """Options of `moeworks config`."""

    json: bool = False
    """Print the config as JSON and nothing else."""
    list: bool = False
    """Print the names of the presets and what they are for."""


def parse(argv: list[str]) -> Parsed[ConfigOptions]:
    """The config that `argv` describes; raises ConfigError for one that is not valid."""
    return parse_run(ConfigOptions, argv, prog="moeworks config")


def run(parsed: Parsed[ConfigOptions]) -> None:
    """Print it."""
    if parsed.options.list:
        _print_presets()
    elif parsed.options.json:
        print(json.dumps(to_dict(parsed.config), indent=2, ensure_ascii=False))
    else:
        _print_fields(parsed.config)
        _print_counts(parsed.config)


def _print_presets() -> None:
    table = Table.grid(padding=(0, 2))
    for name, make in PRESETS.items():
        table.add_row(Text(name, style="bold"), Text(make.__doc__ or ""))
    Console().print(table)


def _print_fields(config: RunConfig) -> None:
    table = Table("field", "value", "meaning", box=None, pad_edge=False)
    group = ""
    for row in explain(config):
        if row.path.rpartition(".")[0] != group:
            group = row.path.rpartition(".")[0]
            table.add_row()
        meaning = Text(row.doc).append(f" ({row.type})", style="dim")
        table.add_row(Text(row.path, style="cyan"), Text(_value_text(row.value), style="bold"), meaning)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    console.print(table)


def _value_text(value: object) -> str:
    """A value as it would be typed after its option."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "(none)"
    return repr(value) if value == "" or str(value) != str(value).strip() else str(value)


def _print_counts(config: RunConfig) -> None:
    model, seq_len = config.model, config.train.seq_len
    parameters = count_parameters(model)
    table = Table.grid(padding=(0, 2))
    table.add_row("parameters", f"{parameters.total:,}", "all")
    table.add_row("", f"{parameters.active:,}", "active per token, embedding included")
    table.add_row(
        "", f"{parameters.active_non_embedding:,}", "active per token, without embedding and lm_head"
    )
    table.add_row("FLOPs per token", f"{count_flops(model, seq_len, training=False):,}", "forward")
    table.add_row("", f"{count_flops(model, seq_len, training=True):,}", "forward and backward")
    table.add_row(
        "key/value cache", f"{count_kv_bytes(model, FLOAT32_BYTES):,}", "bytes per token in float32"
    )
    console = Console()
    console.print()
    console.print(table)
