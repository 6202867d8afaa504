"""`moeworks config`: every field of a run's config with its value and meaning, and what it counts to."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from moeworks.cli.arguments import Parsed
from moeworks.cli.arguments import parse as parse_run
from moeworks.cli.output import console, facts, notes, print_json
from moeworks.config.codec import to_dict
from moeworks.config.count import count_flops, count_kv_bytes, count_parameters
from moeworks.config.explain import explain
from moeworks.config.presets import PRESETS
from moeworks.config.run import RunConfig

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ConfigOptions:
    """Options of `moeworks config`."""

    json: bool = False
    """Print the config as JSON and nothing else."""


def parse(argv: list[str]) -> Parsed[ConfigOptions]:
    """The config that `argv` describes; raises ConfigError for one that is not valid."""
    return parse_run(ConfigOptions, argv, prog="moeworks config")


def run(parsed: Parsed[ConfigOptions]) -> None:
    """Print the config."""
    if parsed.options.json:
        print_json(to_dict(parsed.config))
    else:
        _print_fields(parsed.config)
        _print_counts(parsed.config)


def print_list(matching: str, *, as_json: bool) -> None:
    """Print the presets of runs whose names contain `matching`, and what they are for."""
    rows = [(name, make.__doc__ or "") for name, make in PRESETS.items() if matching in name]
    if as_json:
        print_json([{"name": name, "purpose": purpose} for name, purpose in rows])
    else:
        console().print(notes(rows, style=""))


def _print_fields(config: RunConfig) -> None:
    table = Table("field", "value", "meaning", box=None, pad_edge=False)
    group = ""
    for row in explain(config):
        if row.path.rpartition(".")[0] != group:
            group = row.path.rpartition(".")[0]
            table.add_row()
        meaning = Text(row.doc).append(f" ({row.type})", style="dim")
        table.add_row(Text(row.path, style="cyan"), Text(_value_text(row.value), style="bold"), meaning)
    console().print(table)


def _value_text(value: object) -> str:
    """A value as it would be typed after its option."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "(none)"
    return repr(value) if value == "" or str(value) != str(value).strip() else str(value)


def _print_counts(config: RunConfig) -> None:
    model, seq_len = config.model, config.train.seq_len
    parameters = count_parameters(model)
    rows = [
        ("parameters", f"{parameters.total:,}", "all"),
        ("", f"{parameters.active:,}", "active per token, embedding included"),
        ("", f"{parameters.active_non_embedding:,}", "active per token, without embedding and lm_head"),
        ("FLOPs per token", f"{count_flops(model, seq_len, training=False):,}", "forward"),
        ("", f"{count_flops(model, seq_len, training=True):,}", "forward and backward"),
        ("key/value cache", f"{count_kv_bytes(model, FLOAT32_BYTES):,}", "bytes per token in float32"),
    ]
    screen = console()
    screen.print()
    screen.print(facts("", rows))
