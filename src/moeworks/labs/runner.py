"""Runs the cells of a lab, in this process or in several with one torch thread each.

Each finished cell is a file at once; cells that have one are not measured again.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from moeworks.data.shards import PreparedCorpus, prepare
from moeworks.labs.cells import Cell, read_cell, write_cell
from moeworks.labs.train_cell import run_cell

_PATIENCE = 0.5  # seconds between two looks at what workers report

Advance = Callable[[Cell, float], None]
"""Hears a cell and the share of it that is done, 1.0 when its file is there."""


@dataclass(frozen=True)
class Outcome:
    """All cells of a lab."""

    records: list[dict[str, Any]]
    measured: int
    """How many were measured now; the others were there."""


def run_cells(cells: Sequence[Cell], folder: Path, *, jobs: int, advance: Advance) -> Outcome:
    """Measure what `folder` lacks, and return everything in the order of `cells`.

    Raises what a cell raises; the cells that were finished stay. KeyboardInterrupt stops the workers.
    """
    missing = []
    for cell in cells:
        if read_cell(cell.path(folder)) is None:
            missing.append(cell)
        else:
            advance(cell, 1.0)
    if jobs == 1 or len(missing) == 1:
        _run_here(missing, folder, advance)
    elif missing:
        _run_in_processes(missing, folder, min(jobs, len(missing)), advance)
    records = [read_cell(cell.path(folder)) for cell in cells]
    return Outcome([record for record in records if record is not None], len(missing))


def _run_here(cells: Sequence[Cell], folder: Path, advance: Advance) -> None:
    corpora: dict[str, PreparedCorpus] = {}
    with _one_thread():
        for cell in cells:
            _measure(cell, folder, corpora, lambda done, cell=cell: advance(cell, done))
            advance(cell, 1.0)


def _run_in_processes(cells: Sequence[Cell], folder: Path, jobs: int, advance: Advance) -> None:
    # Not fork: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    told: Queue[tuple[int, float]] = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(told,))
    try:
        futures = {pool.submit(_work, number, cell, folder): cell for number, cell in enumerate(cells)}
        pending: set[Future[None]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
            for number, share in _reports(told):
                advance(cells[number], min(share, 0.99))
            for future in done:
                future.result()
                advance(futures[future], 1.0)
        pool.shutdown()
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _reports(told: "Queue[tuple[int, float]]") -> Iterator[tuple[int, float]]:
    while True:
        try:
            yield told.get_nowait()
        except queue.Empty:
            return


class _Worker:
    """What a worker process keeps between cells."""

    told: "Queue[tuple[int, float]] | None" = None
    corpora: dict[str, PreparedCorpus] = {}  # noqa: RUF012 - one per process is what is meant


def _start_worker(told: "Queue[tuple[int, float]]") -> None:
    # The first process decides about an interrupt and about a terminal that goes, and takes the others along,
    # also when it is killed.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _Worker.told = told


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int, cell: Cell, folder: Path) -> None:
    told = _Worker.told
    assert told is not None
    _measure(cell, folder, _Worker.corpora, lambda done: told.put((number, done)))


def _measure(
    cell: Cell, folder: Path, corpora: dict[str, PreparedCorpus], tell: Callable[[float], None]
) -> None:
    if cell.corpus not in corpora:
        corpora[cell.corpus] = prepare(cell.config.data, cell.config.corpus, cell.config.model.vocab_size)
    write_cell(cell.path(folder), run_cell(cell, corpora[cell.corpus], tell))


@contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
