"""A lab as Markdown with pictures beside it, and an index of labs, for a repository's docs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from moeworks.errors import DataError
from moeworks.files import make_folder, write_atomically
from moeworks.labs.summary import LabSummary, write_summary
from moeworks.report.lab_svg import draw
from moeworks.report.lab_words import (
    VERDICTS,
    evidence_line,
    number_with_interval,
    seeds_note,
    table_header,
    table_rows,
)

_OURS = b"# Lab"
"""What the pages written here begin with."""


def write_lab_docs(folder: Path, summary: LabSummary) -> Path:
    """Write README.md, a picture for each figure and the results into `folder`; returns the page's path."""
    path = folder / "README.md"
    _check_replaceable(path)
    make_folder(folder)
    for figure in summary.figures:
        write_atomically(folder / f"{figure.key}.svg", (draw(figure) + "\n").encode())
    write_summary(folder, summary)
    write_atomically(path, lab_markdown(summary).encode())
    return path


def write_index(folder: Path, summaries: Sequence[LabSummary]) -> Path:
    """Write the page that lists the labs in the folders below `folder`."""
    path = folder / "README.md"
    _check_replaceable(path)
    write_atomically(path, index_markdown(summaries).encode())
    return path


def _check_replaceable(path: Path) -> None:
    """A repository's own README.md must not be lost to an --out that names its folder."""
    if path.is_file() and not path.read_bytes().startswith(_OURS):
        raise DataError(f"{path}: exists and is no page of a lab: choose another --out, or move that file")


def lab_markdown(summary: LabSummary) -> str:
    """The page of one lab; its pictures lie beside it."""
    judgement = summary.judgement
    pictures = "\n\n".join(
        f"**{figure.title}.** {figure.caption}\n\n![{figure.title}]({figure.key}.svg)"
        for figure in summary.figures
    )
    parts = [
        f"# Lab: {summary.name}",
        f"> {summary.claim}",
        f"Source: {summary.source}.",
        f"Measured: {summary.question}",
        f"## The claim {VERDICTS[judgement.verdict]}" + (" (a quick run)" if summary.quick else ""),
        "\n".join(f"- {evidence_line(item)}" for item in judgement.evidence),
        judgement.note,
        "## Numbers",
        _table(table_header(summary), table_rows(summary)),
        seeds_note(summary) + " CPU seconds are those of optimizer steps on one core.",
        "## Pictures",
        pictures,
        "## Setting",
        _table(("what", "value"), [(fact.name, fact.value) for fact in summary.setting]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index_markdown(summaries: Sequence[LabSummary]) -> str:
    """What each lab claims, and what became of it."""
    rows = [
        (
            f"[{summary.name}]({summary.name}/README.md)",
            summary.claim,
            f"**{summary.judgement.verdict}**" + (" (quick)" if summary.quick else ""),
            "<br>".join(
                f"{item.statement}: {number_with_interval(item.estimate)} ({item.verdict})"
                for item in summary.judgement.evidence
            ),
        )
        for summary in summaries
    ]
    intro = (
        "Short experiments on real text, each about one claim: `moeworks lab run NAME` repeats one. A verdict"
        " is about this setting, small models and short training, and no more: held, failed (a part of the"
        " claim is contradicted, its interval lies on the other side), or undecided. Numbers have 95 %"
        " intervals over seeds and documents."
    )
    return f"# Labs\n\n{intro}\n\n{_table(('lab', 'claim', 'here', 'measured'), rows)}\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(header), _line(["---"] * len(header)), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
