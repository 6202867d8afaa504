"""Directories that appear whole or not at all, on a POSIX file system.

A directory is filled under a hidden name beside its place and then renamed; a directory goes by being renamed
to a hidden name and then deleted. A process killed in between leaves hidden directories only:

    .step-00000400.tmp-PID    was being filled
    .step-00000400.old-PID    was being replaced by a new step-00000400
    .step-00000400.trash-PID  was being deleted

The next process to write removes them; an `old` one whose successor never arrived goes back to its place.
"""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

_LEFTOVER = re.compile(r"\.(step-\d+)\.(tmp|old|trash)-(\d+)")


@contextmanager
def staged_directory(target: Path) -> Generator[Path]:
    """Yield an empty directory that becomes `target` when the block ends, and vanishes if the block fails."""
    staged = _hidden(target, "tmp")
    staged.mkdir()
    try:
        yield staged
        _sync_tree(staged)
        _publish(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # there only if something failed


def remove_directory(target: Path) -> None:
    """Delete `target` so that no part of it is ever seen under its name. Raises OSError."""
    trash = _hidden(target, "trash")
    os.rename(target, trash)
    _sync(target.parent)
    shutil.rmtree(trash)


def sweep_leftovers(root: Path) -> None:
    """Remove what killed processes left in `root`, after putting back what they were about to replace."""
    restore_replaced(root)
    for leftover in _leftovers(root):
        shutil.rmtree(leftover.path, ignore_errors=True)


def restore_replaced(root: Path) -> None:
    """Put directories back that a killed process had moved aside without putting the new one in place."""
    for leftover in _leftovers(root):
        if leftover.role == "old" and not leftover.target.exists():
            os.rename(leftover.path, leftover.target)


class _Leftover(NamedTuple):
    path: Path
    target: Path
    role: str


def _leftovers(root: Path) -> list[_Leftover]:
    found = ((path, _LEFTOVER.fullmatch(path.name)) for path in sorted(root.iterdir()))
    return [
        _Leftover(path, root / match[1], match[2])
        for path, match in found
        if match is not None and not _belongs_to_another(int(match[3]))
    ]


def _belongs_to_another(pid: int) -> bool:
    """Whether another living process has this id. Our own id is an earlier process's: ids are reused."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _hidden(target: Path, role: Literal["tmp", "old", "trash"]) -> Path:
    return target.with_name(f".{target.name}.{role}-{os.getpid()}")


def _publish(staged: Path, target: Path) -> None:
    """Give `staged` its final name. A directory can take only the place of an empty one, so two renames."""
    if not target.exists():
        os.rename(staged, target)
        _sync(target.parent)
        return
    old = _hidden(target, "old")
    os.rename(target, old)
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(old, target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)  # the new one is in place: what stays is swept next time


def _sync_tree(directory: Path) -> None:
    for path in directory.iterdir():
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    """Wait until the file or directory is on the disk, so that a rename never outruns the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
