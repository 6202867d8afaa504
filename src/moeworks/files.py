"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

from moeworks.errors import DataError


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, hidden, and that starts with `path`'s own name."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it. Raises DataError when it cannot."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
