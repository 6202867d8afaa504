"""What `moeworks lab` does: run labs with a bar, print tables, draw reports."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moeworks.cli.lab import LabOptions, ListOptions, ReportOptions, RunOptions, names
from moeworks.cli.output import as_record, console, grid, notes, print_json
from moeworks.cli.summary import cpu_name
from moeworks.errors import DataError
from moeworks.labs.cells import Cell
from moeworks.labs.experiments import LABS
from moeworks.labs.run import LabRun, run_lab
from moeworks.labs.summary import LabSummary, read_summary
from moeworks.report.lab_docs import write_index, write_lab_docs
from moeworks.report.lab_page import write_lab_page
from moeworks.report.lab_words import VERDICTS, evidence_line, narrow_table, seeds_note

PIPED_WIDTH = 240  # intervals in every column


def run(options: LabOptions) -> int:
    """Returns 0. An interrupted run has kept its finished cells: the same command goes on."""
    if isinstance(options, ListOptions):
        return _list(options)
    return _run(options) if isinstance(options, RunOptions) else _report(options)


def _list(options: ListOptions) -> int:
    if options.json:
        rows = {name: {"claim": lab.claim, "source": lab.source} for name, lab in LABS.items()}
        print_json({"labs": rows})
    else:
        console().print(notes(((name, lab.claim) for name, lab in LABS.items()), style=""))
    return 0


def _run(options: RunOptions) -> int:
    asked = LabRun(
        data=options.data,
        seeds=options.seeds,
        steps=options.steps,
        quick=options.quick,
        jobs=options.jobs,
        out=options.out,
        cache_dir=options.cache_dir,
    )
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    summaries = []
    try:
        for name in names(options):
            with _bar(errors, name) as bar:
                summary = run_lab(
                    LABS[name],
                    asked,
                    machine={"machine": cpu_name(), "processes": f"{asked.jobs}, one thread each"},
                    plan=lambda cells, bar=bar: _Watch(bar, cells).advance,
                    tell=errors.print,
                )
            page = write_lab_page(asked.out / name, summary)
            summaries.append(summary)
            if not options.json:
                print_lab(summary, page)
    except KeyboardInterrupt:
        errors.print("\nstopped; what is finished is kept, the same command goes on from there")
        raise
    if options.json:
        print_json({"labs": [as_record(summary) for summary in summaries]})
    return 0


def print_lab(summary: LabSummary, page: Path) -> None:
    """Claim, table and judgement."""
    screen = console()
    if not screen.is_terminal:
        screen.width = max(screen.width, PIPED_WIDTH)
    screen.print(f"\n[bold]{summary.name}[/bold]{' (quick)' if summary.quick else ''}: {summary.claim}")
    screen.print(grid("", *narrow_table(summary)))
    screen.print(notes((row.name, row.words) for row in summary.rows))
    screen.print(seeds_note(summary), style="dim")
    judgement = summary.judgement
    screen.print(f"The claim [bold]{VERDICTS[judgement.verdict]}[/bold].")
    for item in judgement.evidence:
        screen.print(f"  {evidence_line(item)}", markup=False)
    if judgement.note:
        screen.print(judgement.note, style="dim")
    screen.print(f"report: {page}", markup=False)


def _report(options: ReportOptions) -> int:
    summaries = []
    for name in names(options):
        try:
            summary = read_summary(options.labs / name)
        except DataError:
            if len(names(options)) == 1 or any((options.labs / name).glob("results*.json")):
                raise
            continue
        summaries.append(summary)
        if options.format == "html":
            print(write_lab_page(options.labs / name, summary))
        else:
            print(write_lab_docs((options.out or options.labs) / name, summary))
    if not summaries:
        raise DataError(f"{options.labs}: no results of any lab; run one first: moeworks lab run NAME")
    if options.format == "md" and len(names(options)) > 1:
        print(write_index(options.out or options.labs, summaries))
    return 0


@contextmanager
def _bar(screen: Console, name: str) -> Generator[Progress]:
    with Progress(
        TextColumn(name),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[cells]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=screen,
        disable=not screen.is_terminal,
    ) as bar:
        yield bar


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
        """Hear of a cell."""
        before = self._shares.get(cell.key)
        if before is None and share == 1.0:
            self._total -= cell.work
        else:
            self._done += cell.work * (share - (before or 0.0))
        self._shares[cell.key] = share
        finished = sum(done == 1.0 for done in self._shares.values())
        text = f"{finished} of {self._count} cells"
        self._bar.update(self._task, total=self._total, completed=self._done, cells=text)
