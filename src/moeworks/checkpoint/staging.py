"""Directories that appear whole or not at all, on a POSIX file system.

A directory is filled under a hidden name beside its place and then renamed; a directory goes by being renamed
to a hidden name and then deleted. A process killed in between leaves hidden directories only:

    .step-00000400.tmp-PID    was being filled
    .step-00000400.old-PID    was being replaced by a new step-00000400
    .step-00000400.trash-PID  was being deleted

Whoever writes, deletes or cleans up holds the lock of the directory that they lie in (`files.locked`). So
whatever hidden directory the holder finds belongs to a process that is gone; process ids, which repeat, are
never asked. The next process to write removes them; an `old` one whose successor never arrived goes back.
"""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from moeworks.files import publish, remove, sync_folder

_LEFTOVER = re.compile(r"\.(step-\d+)\.(tmp|old|trash)-(\d+)")


@contextmanager
def staged_directory(target: Path) -> Generator[Path]:
    """An empty directory that becomes `target` when the block ends, and vanishes if the block fails.

    The caller holds the lock of `target`'s parent and has swept it.
    """
    staged, old = _hidden(target, "tmp"), _hidden(target, "old")
    staged.mkdir()
    try:
        yield staged
        publish(staged, target, aside=old)
        shutil.rmtree(old, ignore_errors=True)  # the new one is in place: what stays is swept next time
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # there only if something failed


def remove_directory(target: Path) -> None:
    """Delete `target` so that no part of it is ever seen under its name. Raises OSError.

    The caller holds the lock of `target`'s parent.
    """
    trash = _hidden(target, "trash")
    os.rename(target, trash)
    sync_folder(target.parent)
    remove(trash)


def sweep_leftovers(root: Path) -> None:
    """Remove what killed processes left in `root`, after putting back what they were about to replace.

    The caller holds the lock of `root`.
    """
    restore_replaced(root)
    for leftover in _leftovers(root):
        with suppress(OSError):
            remove(leftover.path)


def restore_replaced(root: Path) -> None:
    """Put directories back that a killed process moved aside without putting the new one in place.

    The caller holds the lock of `root`.
    """
    for leftover in replaced_directories(root):
        os.rename(leftover.path, leftover.target)
        sync_folder(root)


class Leftover(NamedTuple):
    """A hidden directory of an unfinished operation."""

    path: Path
    target: Path
    """The directory that the operation was about."""
    role: str
    """tmp, old or trash."""


def replaced_directories(root: Path) -> list[Leftover]:
    """The directories that were moved aside and have no successor (yet, while another process works)."""
    return [found for found in _leftovers(root) if found.role == "old" and not found.target.exists()]


def _leftovers(root: Path) -> list[Leftover]:
    matches = ((path, _LEFTOVER.fullmatch(path.name)) for path in sorted(root.iterdir()))
    return [Leftover(path, root / match[1], match[2]) for path, match in matches if match is not None]


def _hidden(target: Path, role: Literal["tmp", "old", "trash"]) -> Path:
    return target.with_name(f".{target.name}.{role}-{os.getpid()}")
