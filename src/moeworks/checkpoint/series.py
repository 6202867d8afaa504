"""The checkpoints of one run."""

from pathlib import Path

from moeworks.checkpoint.names import list_checkpoints, step_of
from moeworks.checkpoint.staging import remove_directory, replaced_directories, restore_replaced
from moeworks.checkpoint.store import verify_checkpoint
from moeworks.errors import CheckpointError, check
from moeworks.files import locked


def latest_checkpoint(root: Path) -> Path:
    """The newest checkpoint in `root`, verified.

    Raises CheckpointError if there is none, or if the newest is damaged: that message names the damage and
    the last good checkpoint. Falling back on its own would hide the damage and throw training steps away.
    """
    found = find_latest(root)
    if found is None:
        raise CheckpointError(f"no checkpoint in {root}")
    return found


def find_latest(root: Path) -> Path | None:
    """The newest checkpoint in `root`, verified as by latest_checkpoint; None if there is none at all."""
    _restore(root)
    checkpoints = list_checkpoints(root)
    if not checkpoints:
        return None
    try:
        verify_checkpoint(checkpoints[-1])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_last_good(checkpoints)}") from error
    return checkpoints[-1]


def prune_checkpoints(root: Path, keep_last: int, best_step: int | None = None) -> list[Path]:
    """Delete all checkpoints but the newest `keep_last` and that of `best_step`; returns the deleted ones.

    A kill in the middle leaves no half checkpoint under a valid name. Raises ConfigError if keep_last < 1,
    and CheckpointError if a deletion fails.
    """
    check(keep_last >= 1, "keep_last", keep_last, "must be at least 1")
    gone = [path for path in list_checkpoints(root)[:-keep_last] if step_of(path) != best_step]
    for path in gone:
        try:
            with locked(root, wait=True):
                remove_directory(path)
        except OSError as error:
            raise CheckpointError(f"cannot delete the old checkpoint {path}: {error}") from error
    return gone


def _restore(root: Path) -> None:
    """Put back what a killed writer had moved aside; waits for a living writer, which holds the lock."""
    try:
        if root.is_dir() and replaced_directories(root):
            with locked(root, wait=True):
                restore_replaced(root)
    except OSError as error:
        raise CheckpointError(f"cannot put back a replaced checkpoint in {root}: {error}") from error


def _last_good(checkpoints: list[Path]) -> str:
    damaged = checkpoints[-1]
    for path in reversed(checkpoints[:-1]):
        if _is_whole(path):
            return f"the last good checkpoint is {path}: delete the newer ones to go on from there"
    return f"no other checkpoint in {damaged.parent} is whole"


def _is_whole(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True
