"""A lab's table and judgement in words, for the page, for Markdown and for the terminal."""

from moeworks.analyse.verdicts.words import short_number
from moeworks.labs.intervals import Estimate
from moeworks.labs.judging import Evidence, Verdict
from moeworks.labs.summary import ArmRow, LabSummary

_WIDE = ("what it is", "parameters", "active", "tokens")

VERDICTS: dict[Verdict, str] = {
    "held": "held in this setting",
    "failed": "failed in this setting",
    "undecided": "is undecided in this setting",
}


def number_with_interval(estimate: Estimate | None, digits: int = 4, *, sign: bool = False) -> str:
    """1.234 [1.2, 1.3]; a number without width stands alone."""
    if estimate is None:
        return "–"
    plus = "+" if sign else ""
    value, low, high = (f"{x:{plus}.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return value if low == high == value else f"{value} [{low}, {high}]"


def evidence_line(evidence: Evidence) -> str:
    """What was measured of one part of the claim."""
    return f"{evidence.statement}: {evidence.verdict}, {number_with_interval(evidence.estimate)}"


def table_header(summary: LabSummary) -> list[str]:
    """Of table_rows."""
    metrics = [metric.title for metric in summary.rows[0].metrics] if summary.rows else []
    return [
        "arm",
        "what it is",
        "parameters",
        "active",
        "FLOPs a token",
        "tokens",
        "CPU s",
        "bits per byte",
        f"less '{summary.baseline}'",
        *metrics,
        *(["diverged"] if _any_diverged(summary) else []),
    ]


def table_rows(summary: LabSummary) -> list[list[str]]:
    """A row for each arm."""
    return [_row(summary, row) for row in summary.rows]


def narrow_table(summary: LabSummary) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal: without the columns that say what an arm is."""
    header = table_header(summary)
    kept = [place for place, name in enumerate(header) if name not in _WIDE]
    rows = [[row[place] for place in kept] for row in table_rows(summary)]
    return [header[place] for place in kept], rows


def seeds_note(summary: LabSummary) -> str:
    """What the intervals are over."""
    seeds = max((row.seeds for row in summary.rows), default=0)
    what = "95 % intervals; of bits per byte "
    if seeds == 1:
        return what + "over documents alone: one seed says nothing about others."
    return what + f"over {seeds} seeds and documents, paired; of other figures over seeds."


def _any_diverged(summary: LabSummary) -> bool:
    return any(row.diverged for row in summary.rows)


def _row(summary: LabSummary, row: ArmRow) -> list[str]:
    cells = [
        row.name,
        row.words,
        short_number(row.parameters),
        short_number(row.active),
        f"{short_number(row.flops)} ({row.flops_to_baseline:.3f} ×)",
        short_number(row.tokens),
        f"{row.cpu_seconds:.0f}",
        number_with_interval(row.bits, 3),
        "" if row.name == summary.baseline else number_with_interval(row.difference, sign=True),
    ]
    cells += [number_with_interval(metric.estimate, metric.digits) for metric in row.metrics]
    return [*cells, f"{row.diverged} of {row.seeds}"] if _any_diverged(summary) else cells
