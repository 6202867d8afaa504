"""Folders of prepared corpora on disk: named by content, checked when opened, published whole."""

import hashlib
import json
import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from moeworks.errors import DataError
from moeworks.files import make_folder, publish, remove, temporary_name, write_atomically

CHECKED_BYTES = 1 << 30
"""Largest file whose whole sha256 is checked at every opening; of larger files, samples are checked."""
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 20
_ABANDONED_AFTER = 7 * 24 * 3600.0  # seconds; an older unfinished folder is abandoned
_KEY = re.compile(r"[0-9a-f]+")


def corpora_folder(cache_dir: str | None) -> Path:
    """The folder that holds prepared corpora, made if it is missing. Raises DataError when it cannot be."""
    root = Path(cache_dir).expanduser() if cache_dir is not None else Path.home() / ".cache" / "moeworks"
    folder = root / "corpora"
    try:
        make_folder(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return folder


def is_key(name: str) -> bool:
    """Whether `name` may be the folder of a prepared corpus; other names could lead out of the cache."""
    return _KEY.fullmatch(name) is not None


def write_meta(folder: Path, meta: Mapping[str, object], checksums: Mapping[str, str]) -> None:
    """Write meta.json: `meta`, and size and checksum of each file (by path relative to `folder`)."""
    sizes = {name: (folder / name).stat().st_size for name in sorted(checksums)}
    content = {**meta, "files": {name: [size, checksums[name]] for name, size in sizes.items()}}
    samples = {name: sampled_checksum(folder / name) for name, size in sizes.items() if _is_large(size)}
    sealed = {**content, "checksum": meta_checksum(content), "samples": samples}
    write_atomically(folder / "meta.json", json.dumps(sealed, indent=1).encode())


def read_meta(folder: Path) -> dict:
    """Read meta.json and check every file against it. Raises DataError naming the first that is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'meta.json'}: missing or not JSON") from error
    samples = meta.pop("samples", {}) if isinstance(meta, dict) else {}
    if not isinstance(meta, dict) or meta.pop("checksum", None) != meta_checksum(meta):
        raise DataError(f"{folder / 'meta.json'}: altered")
    for name, (size, checksum) in meta["files"].items():
        _check_file(folder / name, size, checksum, samples.get(name))
    return meta


def meta_checksum(meta: dict) -> str:
    """sha256 over `meta` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, size: int, checksum: str, sampled: str | None) -> None:
    """Check one file; `sampled` is None for small files and older folders, which are read whole."""
    if not path.is_file() or path.stat().st_size != size:
        raise DataError(f"{path}: missing, or not of {size} bytes")
    if _is_large(size) and sampled is not None:
        if sampled_checksum(path) != sampled:
            raise DataError(f"{path}: altered (the sha256 of its samples differs)")
    elif file_checksum(path) != checksum:
        raise DataError(f"{path}: altered (its sha256 differs)")


def _is_large(size: int) -> bool:
    return size > CHECKED_BYTES


def sampled_checksum(path: Path) -> str:
    """sha256 of samples that are spread evenly over a file, its beginning and end among them.

    It costs the same however large the file is, and notices what a power cut or a failing disk does: parts
    that are zero or another file's.
    """
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        last = max(path.stat().st_size - _SAMPLE_BYTES, 0)
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            checksum.update(file.read(_SAMPLE_BYTES))
    return checksum.hexdigest()


def file_checksum(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def building(folder: Path) -> Generator[Path]:
    """A new folder to fill, which becomes `folder` when the block ends and is deleted if it fails.

    Of several processes that build the same folder the first to finish wins; the others drop theirs, which
    are equal. Raises DataError when the disk refuses.
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
        with suppress(OSError):
            remove(temporary)


def discard(folder: Path) -> None:
    """Remove `folder`; nobody sees it half-removed, and it may be gone already."""
    doomed = temporary_name(folder)
    with suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, doomed)
    with suppress(OSError):
        remove(doomed)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        publish(temporary, folder)
    except OSError:
        if not folder.exists():
            raise


def _drop_abandoned(folder: Path) -> None:
    for path in folder.parent.glob(f".{folder.name}.*"):
        with suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                remove(path)


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: the token cache cannot be written: {error.strerror or error}; "
        "corpus.cache_dir sets another place"
    )
