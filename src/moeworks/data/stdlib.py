"""Python's own library as a corpus that is on every machine: its sources, and docstrings of its C parts."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moeworks.data import docstrings
from moeworks.data.documents import Document
from moeworks.data.files import SourceFile
from moeworks.errors import DataError

_TESTS = frozenset({"test", "tests", "idle_test"})


def stdlib_files() -> list[SourceFile]:
    """The importable .py files of the standard library, without its tests, sorted by path.

    The domain is the top folder (asyncio, email, ...), and "modules" for modules of a single file. Folders
    and files that cannot be imported by name (site-packages, config-3.11-..., _sysconfigdata__linux_...-gnu)
    are left out: they describe the machine, not the language.
    """
    root = Path(sysconfig.get_path("stdlib"))
    return [SourceFile(path, _domain(path.relative_to(root))) for path in sorted(_walk(root))]


def stdlib_docstrings() -> list[Document]:
    """One document per module written in C, in the domain "docstrings"; see moeworks.data.docstrings.

    Raises DataError when the interpreter cannot be started again.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", docstrings.__file__]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"stdlib: the docstrings could not be read with {sys.executable}: {error}") from error
    return [Document(text, "docstrings", f"stdlib:{name}") for name, text in json.loads(result.stdout)]


def _domain(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "modules"


def _is_library(folder: str) -> bool:
    return folder.isidentifier() and not folder.startswith("__") and folder not in _TESTS


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if _is_library(name)]
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".py" and stem.isidentifier():
                yield Path(folder, name)
