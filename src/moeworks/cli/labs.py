"""The work of `moeworks lab`: run labs with a bar, print tables, draw reports."""

from pathlib import Path

from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.text import Text

from moeworks.cli.lab import LabOptions, ReportOptions, RunOptions, names
from moeworks.cli.output import console, grid, notes, print_json, progress_bar, text_column
from moeworks.cli.summary import cpu_name
from moeworks.errors import DataError
from moeworks.labs.cells import Cell
from moeworks.labs.experiments import LABS
from moeworks.labs.run import LabRun, run_lab
from moeworks.labs.summary import LabSummary, has_results, read_summary
from moeworks.records import as_record
from moeworks.report.lab_docs import write_index, write_lab_docs
from moeworks.report.lab_page import write_lab_page
from moeworks.report.lab_words import VERDICTS, evidence_line, narrow_table, seeds_note


def run(options: LabOptions) -> int:
    """Run labs or draw reports; returns 0. The cells that an interrupted run has finished are kept."""
    return _run(options) if isinstance(options, RunOptions) else _report(options)


def print_list(matching: str, *, as_json: bool) -> None:
    """Print the labs whose names contain `matching`, and what they claim."""
    found = {name: lab for name, lab in LABS.items() if matching in name}
    if as_json:
        print_json([{"name": name, "claim": lab.claim, "source": lab.source} for name, lab in found.items()])
    else:
        console().print(notes(((name, lab.claim) for name, lab in found.items()), style=""))


def _run(options: RunOptions) -> int:
    request = LabRun(
        data=options.data,
        seeds=options.seeds,
        steps=options.steps,
        quick=options.quick,
        jobs=options.jobs,
        out=options.out,
        cache_dir=options.cache_dir,
    )
    errors = console(stderr=True)
    summaries = []
    try:
        for name in names(options):
            with _bar(name) as bar:
                summary = run_lab(
                    LABS[name],
                    request,
                    machine={"machine": cpu_name(), "processes": f"{request.jobs}, one thread each"},
                    plan=lambda cells, bar=bar: _Watch(bar, cells).advance,
                    tell=errors.print,
                )
            page = write_lab_page(request.out / name, summary)
            summaries.append(summary)
            if not options.json:
                print_lab(summary, page)
    except KeyboardInterrupt:
        errors.print("\nstopped; finished cells are kept, and the same command continues from there")
        raise
    if options.json:
        print_json({"labs": [as_record(summary) for summary in summaries]})
    return 0


def print_lab(summary: LabSummary, page: Path) -> None:
    """Print the claim, the table and the judgement of a lab."""
    screen = console()
    quick = " (quick)" if summary.quick else ""
    screen.print(Text.assemble("\n", (summary.name, "bold"), f"{quick}: {summary.claim}"))
    screen.print(grid("", *narrow_table(summary)))
    screen.print(notes((row.name, row.words) for row in summary.rows))
    screen.print(seeds_note(summary), style="dim")
    judgement = summary.judgement
    screen.print(Text.assemble("The claim ", (VERDICTS[judgement.verdict], "bold"), "."))
    for item in judgement.evidence:
        screen.print(f"  {evidence_line(item)}")
    if judgement.note:
        screen.print(judgement.note, style="dim")
    screen.print(f"report: {page}")


def _report(options: ReportOptions) -> int:
    summaries, pages = [], []
    for name in names(options):
        try:
            summary = read_summary(options.labs / name)
        except DataError:
            if len(names(options)) == 1 or has_results(options.labs / name):
                raise
            continue
        summaries.append(summary)
        if options.format == "html":
            pages.append(write_lab_page(options.labs / name, summary))
        else:
            pages.append(write_lab_docs((options.out or options.labs) / name, summary))
    if not summaries:
        raise DataError(f"{options.labs}: no results of any lab; run one first: moeworks lab run NAME")
    if options.format == "md" and len(names(options)) > 1:
        pages.append(write_index(options.out or options.labs, summaries))
    if options.json:
        print_json({"pages": [str(page) for page in pages]})
    else:
        for page in pages:
            console().print(str(page))
    return 0


def _bar(name: str) -> Progress:
    columns = (
        text_column(name),
        BarColumn(bar_width=24),
        text_column("{task.fields[cells]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return progress_bar(*columns, transient=False)


class _Watch:
    """From the progress of cells to that of the bar: a cell counts by the FLOPs of its training.

    Cells that were there already are no part of the bar, so that the time left is that of the others.
    """

    def __init__(self, bar: Progress, cells: list[Cell]) -> None:
        self._bar, self._count = bar, len(cells)
        self._total, self._done = sum(cell.work for cell in cells), 0.0
        self._shares: dict[str, float] = {}
        self._task = bar.add_task("cells", total=self._total, cells=f"0 of {self._count} cells")

    def advance(self, cell: Cell, share: float) -> None:
        """Note that `share` of `cell` is done."""
        before = self._shares.get(cell.key)
        if before is None and share == 1.0:
            self._total -= cell.work
        else:
            self._done += cell.work * (share - (before or 0.0))
        self._shares[cell.key] = share
        finished = sum(done == 1.0 for done in self._shares.values())
        text = f"{finished} of {self._count} cells"
        self._bar.update(self._task, total=self._total, completed=self._done, cells=text)
