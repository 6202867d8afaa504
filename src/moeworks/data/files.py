"""Which files a corpus consists of, and the domain label of each."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moeworks.data.documents import without_surrogates
from moeworks.errors import DataError

PROSE = frozenset({".txt", ".md", ".rst", ".tex", ".org", ".adoc"})
# fmt: off
CODE = frozenset({
    ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".cuh", ".m", ".rs", ".go",
    ".java", ".kt", ".scala", ".swift", ".cs", ".js", ".mjs", ".ts", ".jsx", ".tsx", ".rb", ".php", ".pl",
    ".lua", ".jl", ".r", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".sh", ".bash",
    ".ps1", ".sql", ".html", ".css", ".xml", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".cmake", ".proto",
    ".f90", ".asm", ".s", ".v", ".vhd", ".zig", ".nim", ".dart", ".vue",
})
# fmt: on
RECORDS = frozenset({".jsonl", ".parquet"})
SUPPORTED = PROSE | CODE | RECORDS

MOST_NAMED_DOMAINS = 32
"""Most files directly in a folder that are labelled by name; with more, files are labelled by suffix."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus and the domain of its documents."""

    path: Path
    domain: str


@dataclass(frozen=True)
class _Found:
    root: Path
    path: Path


def find_files(specs: tuple[str, ...]) -> list[SourceFile]:
    """The files that `specs` (files, folders, globs) name, each once, in the order of specs, then sorted.

    The domain of a file is its top folder below the given folder (for a glob: below the part before the
    first wildcard). Files directly in the given folder, and files given one by one, are labelled by their
    name without suffix while there are at most MOST_NAMED_DOMAINS of them in that folder, and by their
    suffix beyond. Raises DataError for a spec that names nothing, or nothing with a supported suffix.
    """
    found: dict[str, _Found] = {}
    for spec in specs:
        for item in _expand(spec):
            found.setdefault(os.path.abspath(item.path), item)
    direct = Counter(item.root for item in found.values() if item.path.parent == item.root)
    return [SourceFile(item.path, _label(item, direct[item.root])) for item in found.values()]


def _label(item: _Found, direct_files: int) -> str:
    inside = item.path.relative_to(item.root).parts
    if len(inside) > 1:
        return without_surrogates(inside[0])
    if direct_files <= MOST_NAMED_DOMAINS or not item.path.suffix:
        return without_surrogates(item.path.stem)
    return without_surrogates(item.path.suffix.lower().removeprefix("."))


def _expand(spec: str) -> list[_Found]:
    path = Path(spec).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return [_Found(path.parent, path)]
    if glob.has_magic(spec):
        return _matching(path)
    raise DataError(f"{spec}: no such file or folder")


def _in_folder(root: Path) -> list[_Found]:
    found = [_Found(root, path) for path in sorted(_walk(root)) if is_supported(path)]
    if not found:
        raise DataError(f"{root}: the folder holds no file of a supported kind: {_kinds()}")
    return found


def _matching(pattern: Path) -> list[_Found]:
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    paths = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    if not paths:
        raise DataError(f"{pattern}: matches nothing")
    found = [_Found(root, path) for path in paths if path.is_file() and is_supported(path)]
    if not found:
        raise DataError(f"{pattern}: matches no file of a supported kind: {_kinds()}")
    return found


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def is_supported(path: Path) -> bool:
    """Whether files with the suffix of `path` are read from folders and globs."""
    return path.suffix.lower() in SUPPORTED


def _kinds() -> str:
    return " ".join(sorted(SUPPORTED))
