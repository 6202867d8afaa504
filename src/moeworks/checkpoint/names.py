"""Names of checkpoints: `step-` and the number of optimizer steps done, at least eight digits."""

import re
from pathlib import Path

from moeworks.errors import CheckpointError

_NAME = re.compile(r"step-(\d+)")


def checkpoint_dir(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies.

    >>> checkpoint_dir(Path("run"), 400).as_posix()
    'run/step-00000400'
    """
    return root / f"step-{step:08d}"


def step_of(directory: Path) -> int:
    """The step in a checkpoint's name. Raises CheckpointError for any other name."""
    match = _NAME.fullmatch(directory.name)
    if match is None:
        raise CheckpointError(f"{directory}: a checkpoint is called step-NUMBER, as in step-00000400")
    return int(match[1])


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoints in `root`, ascending by step; empty if there is no such directory.

    Only finished ones: unfinished ones never carry such a name. One that was damaged later is listed too,
    so that whoever asks for the newest hears about the damage.
    """
    if not root.is_dir():
        return []
    found = (path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of)
