"""Measure operations, ours beside the peers, interleaved.

    python benchmarks/run.py --list
    python benchmarks/run.py layer train_step --json out.json --markdown out.md
    python benchmarks/run.py layer --cases "E 64" --arms native grouped --rounds 11

Without names every operation runs, which takes hours. Measure on an idle machine. The exit code is 1 when one
of ours failed, or when implementations that should agree did not.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import suite.operations  # noqa: F401, fills the table
from moeworks.errors import nearest
from suite import results, tables
from suite.registry import OPERATIONS, Operation, Settings, wanted
from suite.runner import measure_case
from suite.workers import Worker, serve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
QUICK_ROUNDS = 2
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=20),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


def main(words: list[str]) -> int:
    """The command line."""
    parser = arguments()
    options = parser.parse_args(words)
    if options.worker:
        serve(options.worker)
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    if options.list:
        console.print(listing())
        return 0
    for name in options.names:
        if name not in OPERATIONS:
            parser.error(f"no operation {name!r}; {nearest(name, OPERATIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA device")
    settings = Settings(
        threads=options.threads,
        quick=options.quick,
        data=options.data,
        device=options.device,
        dtype=options.dtype,
    )
    record = results.run_record(settings)
    for name in options.names or OPERATIONS:
        operation = in_mode(OPERATIONS[name], options)
        rounds = options.rounds or (QUICK_ROUNDS if options.quick else operation.rounds)
        entry = results.operation_record(operation, settings, rounds)
        record["operations"].append(entry)
        for case in run_operation(operation, settings, rounds, options, console):
            entry["cases"].append(case)
            console.print(tables.case_table(entry, case))
            write(record, options)  # after every case: a long run that is stopped has not been for nothing
    return 1 if troubles(record) else 0


def arguments() -> argparse.ArgumentParser:
    """What the command line understands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="operations; all of them when none is named")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--threads", type=positive, default=2, help="threads of torch (2)")
    parser.add_argument("--rounds", type=positive, help="samples of each arm, instead of the operation's own")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases whose name holds a TEXT")
    parser.add_argument("--arms", nargs="+", metavar="TEXT", help="only arms whose name holds a TEXT")
    parser.add_argument(
        "--mode",
        choices=["together", "apart"],
        help="all arms in one process, or each in its own (what operations do unless told otherwise); peak"
        " memory always takes a new process for each sample",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="for one layer's time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="the same")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every sample, and the machine")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the tables for the docs")
    parser.add_argument(
        "--data",
        default=str(DATA) if DATA.is_dir() else None,
        help="folder with traces/expert_counts_real.npz; ../shared/data beside the repository if it is there",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def listing() -> Table:
    """Every operation, its unit, what it is and what its ratios are over."""
    table = Table.grid("operation", "unit", "what", padding=(0, 2))
    for operation in OPERATIONS.values():
        over = f", over {operation.reference}" if operation.reference else ""
        table.add_row(operation.name, operation.unit, f"{operation.summary}{over}")
    return table


def in_mode(operation: Operation, options: argparse.Namespace) -> Operation:
    """The operation in the mode that the call asks for; quick runs save the processes."""
    mode = options.mode or ("together" if options.quick else operation.mode)
    return operation if operation.mode == "fresh" else replace(operation, mode=mode)


def run_operation(
    operation: Operation,
    settings: Settings,
    rounds: int,
    options: argparse.Namespace,
    console: Console,
) -> Iterator[results.Record]:
    """Measure each case that the call asks for, and yield its record."""
    cases = [case for case in operation.cases(settings) if _named(case.name, options.cases)]
    workers: dict[str, Worker] = {}
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        task = progress.add_task(operation.name, total=len(cases))

        def tell(text: str) -> None:
            progress.update(task, description=f"{operation.name}, {text}")

        try:
            for case in cases:
                arms = wanted(operation.arms(case, settings), options.arms, operation.reference)
                measured = measure_case(operation, case, arms, settings, rounds, workers, tell)
                progress.advance(task)
                yield results.case_record(operation, case, measured)
        finally:
            for worker in workers.values():
                worker.close()


def _named(name: str, texts: list[str] | None) -> bool:
    return not texts or any(text in name for text in texts)


def write(record: results.Record, options: argparse.Namespace) -> None:
    """The files that the call asks for."""
    if options.json:
        results.write_json(options.json, record)
    if options.markdown:
        results.write_text(options.markdown, tables.markdown(record))


def troubles(record: results.Record) -> list[str]:
    """Arms of ours that failed, and arms that disagree."""
    arms = [arm for operation in record["operations"] for case in operation["cases"] for arm in case["arms"]]
    return [arm["name"] for arm in arms if (arm["ours"] and arm["failed"]) or arm["agrees"] is False]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
