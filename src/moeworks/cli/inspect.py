"""`moeworks inspect trace.parquet -o report.html`, or a run's folder: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from moeworks.cli.options import parse_options, refuse_idle
from moeworks.errors import check

Format = Literal["html", "md", "json", "png"]
_FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class InspectOptions:
    """Look inside a trace or a training run: one offline page, or its tables, or a picture."""

    source: tyro.conf.Positional[Path]
    """A trace, as `moeworks trace` writes it, or a run's folder (training: curves, load over the steps)."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The report. None puts it beside a trace under the trace's name, and into a run as report.html."""
    format: Format | None = None
    """html is the page, md the verdicts and tables, json all tables (docs/inspect.md), png a picture (the
    extra png). None goes by the end of --out, and is html otherwise."""
    compare: Path | None = None
    """A second trace to set beside the first: token by token where their texts agree."""
    model: Path | None = None
    """The model that the trace is of: adds how alike its experts' weights are, and is where the tokenizer
    is looked for."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a model's folder with one. None takes that of --model, or of the model that the
    trace names, where it is still there."""
    max_tokens: int | None = None
    """Take only the first tokens; None takes all."""
    min_count: int = 10
    """How often a token must occur to stand out for an expert."""
    json: bool = False
    """Print one JSON object that says where the report is, instead of words."""

    @property
    def kind(self) -> Format:
        """The format that was chosen."""
        ending = "" if self.out is None else self.out.suffix.removeprefix(".").lower()
        by_name: Format = next((kind for kind in _FORMATS if kind == ending), "html")
        return self.format or by_name


_OF_TRACES = ("compare", "model", "tokenizer", "max_tokens", "min_count")


def parse(argv: list[str]) -> InspectOptions:
    """The options that `argv` spells. Raises ConfigError for values that break a rule or do nothing."""
    options = parse_options(InspectOptions, argv, "moeworks inspect")
    limit = options.max_tokens
    check(limit is None or limit >= 2, "max_tokens", limit, "must be at least 2, or None")
    check(options.min_count >= 1, "min_count", options.min_count, "must be at least 1")
    if options.source.is_dir():
        why = f"on a run's folder: it is for traces; make one with moeworks trace {options.source}"
        refuse_idle(options, _OF_TRACES, why)
    return options
