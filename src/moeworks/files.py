"""Files and folders that appear whole or not at all and survive a power cut, and locks on folders.

Everything that must never be seen half-written is written under a temporary name beside its place and then
published: the content reaches the disk first, then the name, then the folder that holds the name.
"""

import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from moeworks.errors import DataError

LOCK = ".lock"
"""Name of the lock file in a locked folder."""
_LONGEST_STEM = 60  # characters of a name that its temporary name repeats: names end at 255 bytes
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses; it contains the name of `path`."""
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{os.getpid()}-{secrets.token_hex(4)}")


def publish(temporary: Path, path: Path, *, aside: Path | None = None) -> None:
    """Give a complete file or folder its final name; both survive a power cut once this returns.

    A file takes the place of an older file, a folder that of an empty one. A folder that is not empty is
    first renamed to `aside`, and back when the new one cannot take its place. Raises OSError.
    """
    sync_tree(temporary)
    if aside is None or not path.exists():
        os.rename(temporary, path)
    else:
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(aside, path)
            raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds; none of them need exist. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def appearing(path: Path) -> Generator[Path]:
    """A temporary file to write, which becomes `path` when the block ends and is deleted if it fails.

    A symbolic link stays a link: its target is replaced. Raises DataError when the disk refuses, and for a
    `path` that is no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise DataError(f"{path}: cannot be written: it is {_kind(target)}; choose the name of a file")
    temporary = temporary_name(target)
    try:
        yield temporary
        publish(temporary, target)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):  # it is there only after an error, which is the one to report
            remove(temporary)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whose reader sees the old content or the new, never a part.

    A device or pipe (/dev/stdout) is written to directly. Raises DataError when the disk refuses.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise refused(path, error) from error
        return
    with appearing(path) as temporary:
        temporary.write_bytes(content)


def refused(path: Path, error: OSError) -> DataError:
    """The error for a `path` that the disk does not let us write."""
    return DataError(f"{path}: cannot be written: {error.strerror or error}")


def make_folder(path: Path) -> bool:
    """Make `path` and the missing folders above it, durably; returns whether it was missing.

    Raises OSError.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    return bool(missing)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems know no such call
            raise


def sync_tree(path: Path) -> None:
    """Wait until a file, or a folder with all it holds, is on the disk."""
    if not path.is_dir():
        _sync(path)
        return
    for inner in path.iterdir():
        sync_tree(inner)
    sync_folder(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a device or a pipe"


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Generator[None]:
    """Lock `folder`: no other process is inside such a block for it at the same time.

    The lock ends with the process, however that ends, and does not depend on process ids, which repeat (in
    containers above all). Raises DataError naming the holder when another process has the lock, unless
    `wait`; raises OSError when the folder cannot be written to.
    """
    path = folder / LOCK
    descriptor = _open_locked(path, wait=wait)
    if descriptor is None:
        raise DataError(f"{folder}: in use by {_holder(path)}: wait until it has ended, or stop it")
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor of the lock file, locked; None when another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor  # a file system without locks: go on as if alone
            os.close(descriptor)
            raise
        # The previous holder deleted the file that we locked: a deleted file locks nobody out.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    return "another process"
