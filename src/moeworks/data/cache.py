"""Folders of prepared corpora on disk: named by content, checked when opened, published whole."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from moeworks.errors import DataError
from moeworks.files import temporary_name, write_atomically

CHECKED_BYTES = 1 << 30
"""Files up to this size are checked by their sha256 at every opening, larger ones by their size."""
_ABANDONED_AFTER = 7 * 24 * 3600.0  # seconds after which an unfinished folder is a killed process'


def corpora_folder(cache_dir: str | None) -> Path:
    """Where the folders of prepared corpora lie; made if need be. Raises DataError when it cannot be."""
    root = Path(cache_dir).expanduser() if cache_dir is not None else Path.home() / ".cache" / "moeworks"
    folder = root / "corpora"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def write_meta(folder: Path, meta: Mapping[str, object], checksums: Mapping[str, str]) -> None:
    """Write meta.json: `meta`, and size and checksum of each file (by path relative to `folder`)."""
    files = {name: [(folder / name).stat().st_size, checksums[name]] for name in sorted(checksums)}
    content = {**meta, "files": files}
    sealed = {**content, "checksum": meta_checksum(content)}
    write_atomically(folder / "meta.json", json.dumps(sealed, indent=1).encode())


def read_meta(folder: Path) -> dict:
    """Read meta.json and check every file against it. Raises DataError naming the first that is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'meta.json'}: missing or not JSON") from error
    if not isinstance(meta, dict) or meta.pop("checksum", None) != meta_checksum(meta):
        raise DataError(f"{folder / 'meta.json'}: altered")
    for name, (size, checksum) in meta["files"].items():
        _check_file(folder / name, size, checksum)
    return meta


def meta_checksum(meta: dict) -> str:
    """sha256 over `meta` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, size: int, checksum: str) -> None:
    if not path.is_file() or path.stat().st_size != size:
        raise DataError(f"{path}: missing, or not of {size} bytes")
    if size <= CHECKED_BYTES and file_checksum(path) != checksum:
        raise DataError(f"{path}: altered (its sha256 differs)")


def file_checksum(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def building(folder: Path) -> Generator[Path]:
    """A new folder to fill, that becomes `folder` when the block ends, and goes when it fails.

    Of several processes that build the same folder the first to finish wins; the others drop theirs, which
    is equal. Raises DataError when the disk refuses.
    """
    temporary = temporary_name(folder)
    try:
        _drop_abandoned(folder)
        temporary.mkdir()
        yield temporary
        _publish(temporary, folder)
    except OSError as error:
        raise _not_writable(folder.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove `folder`; nobody sees it half-removed, and it may be gone already."""
    doomed = temporary_name(folder)
    with suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise


def _drop_abandoned(folder: Path) -> None:
    for path in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: the token cache cannot be written: {error.strerror or error}; "
        "corpus.cache_dir sets another place"
    )
