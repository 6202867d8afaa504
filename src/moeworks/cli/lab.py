"""`moeworks lab list`, `moeworks lab run NAME` and `moeworks lab report NAME`: their options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moeworks.errors import ConfigError, check, nearest
from moeworks.labs.experiments import LABS

ALL = "all"


@dataclass(frozen=True)
class ListOptions:
    """Every lab and what it claims."""

    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class RunOptions:
    """Train the cells of a lab that are missing, judge its claim, write results.json and report.html."""

    name: tyro.conf.Positional[str]
    """A lab, or "all"."""
    quick: bool = False
    """At most three minutes on two cores: fewer steps and seeds. Its results stand beside full ones."""
    data: tuple[str, ...] = ("stdlib:",)
    """Files, folders (each subfolder is a domain), globs, "stdlib:" or "hf:NAME"."""
    seeds: int | None = None
    """Seeds of every arm; None is the lab's own number."""
    steps: int | None = None
    """Optimizer steps; None is the lab's own number."""
    jobs: int = 2
    """Processes, one thread each."""
    out: Path = Path("labs")
    """Folder of the labs' folders."""
    cache_dir: str | None = None
    """Where tokenised texts are kept; None means ~/.cache/moeworks."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class ReportOptions:
    """Draw the report of a lab from its results."""

    name: tyro.conf.Positional[str]
    """A lab, or "all" that have results."""
    format: Literal["html", "md"] = "html"
    """report.html in the lab's folder, or a page in Markdown with its pictures as SVG."""
    labs: Path = Path("labs")
    """Folder of the labs' folders, as `lab run --out` wrote it."""
    out: Path | None = None
    """With --format md: the folder for the pages, one folder each, and an index; e.g. docs/labs. None is
    the folder of the labs."""


LabOptions = ListOptions | RunOptions | ReportOptions


def parse(argv: list[str]) -> LabOptions:
    """The options that `argv` spells. Raises ConfigError for an unknown lab and for bad numbers."""
    options = tyro.cli(
        Annotated[ListOptions, tyro.conf.subcommand("list")]
        | Annotated[RunOptions, tyro.conf.subcommand("run")]
        | Annotated[ReportOptions, tyro.conf.subcommand("report")],
        prog="moeworks lab",
        args=argv,
    )
    if isinstance(options, ListOptions):
        return options
    if options.name != ALL and options.name not in LABS:
        raise ConfigError(f"lab = {options.name!r}: unknown lab; {nearest(options.name, [*LABS, ALL])}")
    if isinstance(options, ReportOptions):
        check(
            options.out is None or options.format == "md",
            "out",
            str(options.out),
            "is for --format md: report.html lies in the lab's folder",
        )
    return options


def names(options: RunOptions | ReportOptions) -> list[str]:
    """The labs that are meant."""
    return list(LABS) if options.name == ALL else [options.name]
