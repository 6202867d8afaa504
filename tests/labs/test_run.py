"""Running a lab: resuming, processes, pairs, bad input."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeworks.errors import ConfigError, DataError
from moeworks.labs import runner
from moeworks.labs.cells import Cell, read_cell
from moeworks.labs.experiments import LABS
from moeworks.labs.lab import Lab
from moeworks.labs.run import LabRun, run_lab
from moeworks.labs.summary import LabSummary, read_summary
from moeworks.labs.train_cell import run_cell

IGNORE = lambda cells: lambda cell, share: None  # noqa: E731


def run(lab: Lab, asked: LabRun) -> LabSummary:
    return run_lab(lab, asked, machine={"machine": "a desk"}, plan=IGNORE)


def files(asked: LabRun) -> list[Path]:
    return sorted((asked.out / "tiny" / "cells").iterdir())


def test_cells_results_and_pairs(lab, lab_run) -> None:
    summary = run(lab, lab_run)
    assert len(files(lab_run)) == 4
    assert read_summary(lab_run.out / "tiny") == summary
    assert [row.seeds for row in summary.rows] == [2, 2]
    assert [row.steps for row in summary.rows] == [6, 6]
    records = [read_cell(path) for path in files(lab_run)]
    assert {(r["arm"], r["seed"]) for r in records if r} == {(a, s) for a in ("one", "two") for s in (0, 1)}
    assert len({str(r["documents"]["bytes"]) for r in records if r}) == 1


def test_a_cell_repeats_exactly(lab, lab_run) -> None:
    run(lab, lab_run)
    again = replace(lab_run, out=lab_run.out.with_name("again"))
    run(lab, again)
    for one, two in zip(files(lab_run), files(again), strict=True):
        first, second = read_cell(one), read_cell(two)
        assert first is not None and second is not None
        assert first["documents"] == second["documents"]
        assert first["load"] == second["load"]


def test_two_processes_give_what_one_gives(lab, lab_run) -> None:
    run(lab, lab_run)
    both = replace(lab_run, out=lab_run.out.with_name("both"), jobs=2)
    heard: list[tuple[str, float]] = []
    run_lab(lab, both, machine={}, plan=lambda cells: lambda cell, share: heard.append((cell.key, share)))
    assert sum(share == 1.0 for _, share in heard) == 4
    for one, two in zip(files(lab_run), files(both), strict=True):
        assert one.name == two.name
        first, second = read_cell(one), read_cell(two)
        assert first is not None and second is not None
        assert first["documents"] == second["documents"]


def test_only_missing_cells_are_measured(lab, lab_run, monkeypatch) -> None:
    run(lab, replace(lab_run, seeds=1))
    measured: list[tuple[str, int]] = []

    def watch(cell: Cell, *rest: Any) -> dict[str, Any]:
        measured.append((cell.arm, cell.seed))
        return run_cell(cell, *rest)

    monkeypatch.setattr(runner, "run_cell", watch)
    run(lab, lab_run)
    assert measured == [("two", 1), ("one", 1)]
    run(lab, lab_run)
    assert len(measured) == 2
    run(lab, replace(lab_run, steps=4, seeds=1))
    assert len(measured) == 4  # of another length


def test_stops_at_an_interrupt_and_goes_on(lab, lab_run, monkeypatch) -> None:
    done: list[str] = []

    def interrupted(cell: Cell, *rest: Any) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell.arm)
        return run_cell(cell, *rest)

    monkeypatch.setattr(runner, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lab, lab_run)
    assert len(files(lab_run)) == 2
    kept = {path: path.stat().st_mtime_ns for path in files(lab_run)}
    monkeypatch.undo()
    run(lab, lab_run)
    assert len(files(lab_run)) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def children(process: subprocess.Popen[Any]) -> list[int]:
    """Processes that `process` started; none where the system does not tell."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in listed.read_text().split()] if listed.is_file() else []


def is_gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_killed_and_started_again(tmp_path) -> None:
    """A run that is killed leaves whole cells and no processes, and the next one takes the other cells."""
    # Long enough texts for a vocabulary of 1,024 tokens.
    texts = tmp_path / "long"
    texts.mkdir()
    for number in range(12):
        words = " ".join(f"word{number * k % 997} {chr(97 + k % 26) * (k % 7 + 1)}" for k in range(1500))
        (texts / f"{number}.md").write_text(words)
    options = ["--quick", "--steps", "3", "--jobs", "2", "--data", str(texts), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "moeworks", "lab", "run", "shared", *options]
    command += ["--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "out" / "shared" / "cells"
    while process.poll() is None and not (cells.is_dir() and any(cells.glob("[!.]*.json"))):
        time.sleep(0.02)
    started = children(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if all(is_gone(pid) for pid in started):
            break
        time.sleep(0.1)
    assert all(is_gone(pid) for pid in started)
    kept = {path: path.read_bytes() for path in cells.glob("[!.]*.json")}
    assert kept
    assert subprocess.run(command, env=environment, capture_output=True, check=True).returncode == 0
    assert len(list(cells.glob("[!.]*.json"))) == len(LABS["shared"].arms)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_failure_in_a_worker_is_an_error_here(lab, lab_run) -> None:
    run(lab, replace(lab_run, steps=2))
    broken = replace(lab_run, jobs=2, steps=3)
    (lab_run.out / "tiny" / "cells").rename(lab_run.out / "tiny" / "kept")
    (lab_run.out / "tiny" / "cells").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cells"):
        run(lab, broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seeds=0), "seeds = 0: must lie between 1 and 10"),
        (dict(seeds=11), "seeds = 11"),
        (dict(steps=0), "steps = 0: must be at least 1"),
        (dict(jobs=0), "jobs = 0: must be at least 1"),
        (dict(data=()), r"data = \(\): names no text"),
    ],
)
def test_bad_numbers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabRun(**change)


def test_missing_texts(lab, lab_run) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run(lab, replace(lab_run, data=("nowhere/",)))


def test_budgets() -> None:
    shared = LABS["shared"]
    assert LabRun().budget(shared) == shared.full
    assert LabRun(quick=True).budget(shared) == shared.quick
    assert LabRun(quick=True, seeds=3).budget(shared).seeds == 3
