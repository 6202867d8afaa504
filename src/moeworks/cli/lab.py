"""`moeworks lab run NAME` and `moeworks lab report NAME`: their options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moeworks.cli.options import parse_options, refuse_idle
from moeworks.errors import ConfigError, nearest
from moeworks.labs.experiments import LABS

ALL = "all"


@dataclass(frozen=True)
class RunOptions:
    """Train the cells of a lab that are missing, judge its claim, write results.json and report.html."""

    name: tyro.conf.Positional[str]
    """A lab (moeworks list labs), or "all"."""
    quick: bool = False
    """Fewer steps and seeds: at most three minutes on two cores. The results are kept beside full ones."""
    data: tuple[str, ...] = ("stdlib:",)
    """Files, folders (each subfolder is a domain), globs, "stdlib:" or "hf:NAME"."""
    seeds: int | None = None
    """Number of seeds of every arm; None is the lab's own number."""
    steps: int | None = None
    """Optimizer steps; None is the lab's own number."""
    jobs: int = 2
    """Processes, with one thread each."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("labs")
    """Folder in which every lab has a folder of its own."""
    cache_dir: str | None = None
    """Where tokenised texts are kept; None means ~/.cache/moeworks."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ReportOptions:
    """Draw the report of a lab from its results."""

    name: tyro.conf.Positional[str]
    """A lab, or "all" for those that have results."""
    format: Literal["html", "md"] = "html"
    """html writes report.html into the lab's folder, md a page in Markdown with its pictures as SVG."""
    labs: Path = Path("labs")
    """Folder that `lab run --out` wrote."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """With --format md: the folder for the pages, one folder each, and an index; e.g. docs/labs. None is
    the folder of the labs."""
    json: bool = False
    """Print one JSON object with the paths of the pages, and nothing else."""


LabOptions = RunOptions | ReportOptions
SUBCOMMANDS: Any = (
    Annotated[RunOptions, tyro.conf.subcommand("run")]
    | Annotated[ReportOptions, tyro.conf.subcommand("report")]
)


def parse(argv: list[str]) -> LabOptions:
    """The options that `argv` spells. Raises ConfigError for an unknown lab and for bad numbers."""
    options: LabOptions = parse_options(SUBCOMMANDS, argv, "moeworks lab")
    if options.name != ALL and options.name not in LABS:
        raise ConfigError(f"lab = {options.name!r}: unknown lab; {nearest(options.name, [*LABS, ALL])}")
    if isinstance(options, ReportOptions) and options.format != "md":
        refuse_idle(options, ("out",), "without --format md: report.html goes into the lab's folder")
    return options


def names(options: RunOptions | ReportOptions) -> list[str]:
    """The labs that the options name."""
    return list(LABS) if options.name == ALL else [options.name]
