"""What a lab found: the content of results.json, and all that its report is drawn from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import DataError, check
from moeworks.files import write_atomically
from moeworks.labs.curves import bits_figure
from moeworks.labs.figures import Figure
from moeworks.labs.intervals import Estimate
from moeworks.labs.judging import Judgement
from moeworks.labs.lab import Arm, Lab
from moeworks.labs.results import Results

FORMAT = 1
"""Version of results.json."""


@dataclass(frozen=True)
class MetricValue:
    """A column of the table in one row; None where the arm has no such metric."""

    title: str
    estimate: Estimate | None
    digits: int


@dataclass(frozen=True)
class ArmRow:
    """An arm in the table."""

    name: str
    words: str
    parameters: int
    active: int
    """Parameters that one token uses."""
    flops: int
    """FLOPs of training on one token."""
    flops_to_baseline: float
    """FLOPs per token over those of the baseline arm."""
    steps: int
    tokens: int
    cpu_seconds: float
    """In optimizer steps, mean over seeds; one thread."""
    seeds: int
    diverged: int
    """Seeds whose loss or gradient stopped being finite."""
    bits: Estimate | None
    """Bits per byte of held-out text; None when every seed diverged."""
    difference: Estimate | None
    """Less the baseline's, paired; None for the baseline itself and where a pair is missing."""
    metrics: tuple[MetricValue, ...]


@dataclass(frozen=True)
class Fact:
    """A line about the setting."""

    name: str
    value: str


@dataclass(frozen=True)
class LabSummary:
    """results.json."""

    format: int
    name: str
    claim: str
    source: str
    question: str
    quick: bool
    baseline: str
    setting: tuple[Fact, ...]
    rows: tuple[ArmRow, ...]
    judgement: Judgement
    figures: tuple[Figure, ...]
    other: str = ""
    """What tells a run with settings of its own from the lab's: "-5-steps-1-seeds"."""


def summarise(lab: Lab, results: Results, setting: Mapping[str, str], *, quick: bool) -> LabSummary:
    """Everything that is to be said of the cells in `results`."""
    drawn = [draw(results) for draw in (bits_figure, *lab.figures)]
    return LabSummary(
        format=FORMAT,
        name=lab.name,
        claim=lab.claim,
        source=lab.source,
        question=lab.question,
        quick=quick,
        baseline=lab.baseline,
        setting=tuple(Fact(name, value) for name, value in setting.items()),
        rows=tuple(_row(lab, lab.arm(name), results) for name in results.arms),
        judgement=lab.judge(results),
        figures=tuple(figure for figure in drawn if figure is not None),
    )


def variant(summary: LabSummary) -> str:
    """What the names of a run's files have before their ending: nothing for the lab's own full run."""
    return f"{'-quick' if summary.quick else ''}{summary.other}"


def write_summary(folder: Path, summary: LabSummary) -> Path:
    """Write results.json, or that of a quick run or of settings of its own, into the lab's folder."""
    path = folder / f"results{variant(summary)}.json"
    write_atomically(path, json.dumps(to_dict(summary), indent=1, allow_nan=False).encode())
    return path


def has_results(folder: Path) -> bool:
    """Whether the lab in `folder` was run, in full or quickly, with settings of its own left aside."""
    return any((folder / name).is_file() for name in ("results.json", "results-quick.json"))


def read_summary(folder: Path) -> LabSummary:
    """Read results.json, or where there is none results-quick.json.

    Results of a run with settings of its own are not the lab's and are never read in their place. Raises
    DataError when there is neither file, or it is of another version.
    """
    path = folder / "results.json"
    path = path if path.is_file() else folder / "results-quick.json"
    try:
        summary = from_dict(LabSummary, json.loads(path.read_bytes()))
        check(summary.format == FORMAT, "format", summary.format, f"must be {FORMAT}")
        check(not summary.other, "other", summary.other, "must be empty in results of the lab's own settings")
        for figure in summary.figures:  # keys name files and elements of the page
            legal = re.fullmatch("[a-z0-9_-]+", figure.key) is not None
            check(legal, "figures.key", figure.key, "must consist of a-z, 0-9, _ and -")
        return summary
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no results; run the lab first: moeworks lab run {folder.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not the results of a lab: {error}") from error


def _row(lab: Lab, arm: Arm, results: Results) -> ArmRow:
    cells = results.cells(arm.name)
    count = cells[0]["count"]
    baseline = results.cells(lab.baseline) if lab.baseline in results.arms else cells
    seconds = results.metric(arm.name, "cpu_seconds")
    return ArmRow(
        name=arm.name,
        words=arm.words,
        parameters=count["parameters"],
        active=count["active"],
        flops=count["flops"],
        flops_to_baseline=count["flops"] / baseline[0]["count"]["flops"],
        steps=count["steps"],
        tokens=count["tokens"],
        cpu_seconds=seconds.value if seconds is not None else 0.0,
        seeds=len(cells),
        diverged=results.diverged(arm.name),
        bits=results.bits(arm.name),
        difference=None if arm.name == lab.baseline else results.difference(arm.name),
        metrics=tuple(
            MetricValue(column.title, results.metric(arm.name, column.metric), column.digits)
            for column in lab.columns
        ),
    )
