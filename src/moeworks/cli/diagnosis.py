"""The work of `moeworks doctor`: finds the model, runs the checks, and prints what they found."""

import importlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from moeworks.cli.doctor import DoctorOptions
from moeworks.cli.output import console, grid, notes, print_json, progress_bar, text_column
from moeworks.cli.resolve import resolve
from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.find import TRANSFORMERS, subject_of_config, subject_of_path, subject_of_spec
from moeworks.doctor.pitfalls import PITFALLS
from moeworks.doctor.subject import Subject
from moeworks.doctor.verdict import Diagnosis, Finding, Invariant, examine, select
from moeworks.errors import require
from moeworks.files import make_folder, write_atomically
from moeworks.records import as_record

FAILED = 1
_STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


def run(options: DoctorOptions) -> int:
    """Print the findings; 0 if every check that applies holds, 1 if one does not."""
    checks = select(INVARIANTS, options.only)
    _quieten()
    if options.all_transformers:
        return _all_transformers(options, checks)
    assert options.model is not None
    subject = _subject(options.model)
    console(stderr=True).print(f"{subject.name}: {subject.kind}, {len(checks)} checks")
    with progress_bar(text_column("{task.description}")) as bar:
        task = bar.add_task("")

        def tell(finding: Finding) -> None:
            bar.update(task, description=f"{finding.check}: {finding.verdict}")

        diagnosis = examine(subject, checks, tell)
    if options.json:
        print_json(as_record(diagnosis))
    else:
        _print(diagnosis)
    return FAILED if diagnosis.failed else 0


def _subject(named: str) -> Subject:
    path = Path(named)
    weights = path.suffix == ".gguf" or any(path.glob("*.safetensors")) or (path / "checkpoints").is_dir()
    if path.exists() and (weights or (path / "checkpoint.json").is_file()):
        return subject_of_path(path)
    if not path.exists() and (named.startswith(TRANSFORMERS) or ":" in named):
        return subject_of_spec(named)
    described = resolve(named)
    return subject_of_config(described.model, described.name)


def _all_transformers(options: DoctorOptions, checks: Sequence[Invariant]) -> int:
    require("transformers", extra="transformers")
    # It imports transformers, which is an extra.
    conformance = importlib.import_module("moeworks.doctor.conformance")

    def progress(row: Any, seconds: float) -> None:
        failed = row.reason[:100] if row.diagnosis is None else f"{len(row.diagnosis.failed)} checks fail"
        console(stderr=True).print(f"{row.family}: {failed} ({seconds:.0f} s)")

    rows = conformance.examine_transformers(checks, progress)
    make_folder(options.out.parent)
    write_atomically(options.out, conformance.conformance_page(rows, checks).encode())
    if options.json:
        print_json(as_record(rows))
    else:
        console().print(f"{len(rows)} families: {options.out}")
    return FAILED if any(row.diagnosis and row.diagnosis.failed for row in rows) else 0


def _quieten() -> None:
    """Silence the warnings of other libraries, which are not findings."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _print(diagnosis: Diagnosis) -> None:
    out = console()
    rows = []
    for finding in diagnosis.findings:
        rows.append((finding, Text(finding.verdict, style=_STYLES[finding.verdict])))
    table = grid("", ("check", "verdict", "found"), [])
    table.columns[1].justify = table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for finding, verdict in rows:
        table.add_row(finding.check, verdict, Text(finding.message))
    out.print(table)
    counts = {v: sum(f.verdict == v for f in diagnosis.findings) for v in _STYLES}
    out.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    if diagnosis.failed:
        out.print()
        known = {check.name: check for check in INVARIANTS}
        out.print(notes([(f.check, known[f.check].explanation) for f in diagnosis.failed]))
        numbers = sorted({number for f in diagnosis.failed for number in f.pitfalls})
        if numbers:
            listed = ", ".join(map(str, numbers))
            out.print(f"Known bugs that look like this: docs/pitfalls.md, pitfalls {listed}", style="dim")


def print_list(matching: str, *, as_json: bool) -> None:
    """Print the checks whose names contain `matching`, and the known bugs that each guards against."""
    checks = [check for check in INVARIANTS if matching in check.name]
    if as_json:
        print_json([
            {
                "name": c.name, "title": c.title, "explanation": c.explanation,
                "pitfalls": {str(n): PITFALLS[n] for n in c.pitfalls},
            }
            for c in checks
        ])  # fmt: skip
        return
    out = console()
    for check in checks:
        out.print(Text(check.name, style="bold").append(f"  {check.title}", style="not bold"))
        out.print(notes([("", check.explanation)], style=""))
        out.print(notes([(f"  {n}", PITFALLS[n]) for n in check.pitfalls]))
        out.print()
