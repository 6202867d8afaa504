import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from moeworks.data import docstrings
from moeworks.data.documents import Document
from moeworks.data.stdlib import stdlib_docstrings, stdlib_files
from moeworks.errors import DataError


@pytest.fixture(scope="module")
def compiled() -> dict[str, Document]:
    return {document.source: document for document in stdlib_docstrings()}


def test_the_files_are_importable_sources_without_tests() -> None:
    files = stdlib_files()
    assert files == sorted(files, key=lambda file: file.path)
    assert all(file.path.suffix == ".py" and file.path.stem.isidentifier() for file in files)
    folders = {part for file in files for part in file.path.parts}
    assert not folders & {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def test_the_domains_are_packages_and_one_for_single_files() -> None:
    domains = Counter(file.domain for file in stdlib_files())
    assert {"asyncio", "email", "encodings", "json", "modules"} <= set(domains)
    assert domains["modules"] > 100 and domains["encodings"] > 100
    assert {file.path.name for file in stdlib_files() if file.domain == "json"} >= {
        "__init__.py",
        "decoder.py",
    }
    assert {"ast.py", "heapq.py"} <= {file.path.name for file in stdlib_files() if file.domain == "modules"}


def test_docstrings_cover_compiled_modules_only(compiled: dict[str, Document]) -> None:
    assert {"stdlib:builtins", "stdlib:math", "stdlib:_heapq", "stdlib:itertools"} <= set(compiled)
    assert not {"stdlib:heapq", "stdlib:os", "stdlib:abc"} & set(compiled)
    assert {document.domain for document in compiled.values()} == {"docstrings"}
    assert "Return the arc cosine" in compiled["stdlib:math"].text
    assert "builtins.str.split(" in compiled["stdlib:builtins"].text


def test_docstrings_hold_no_address_and_come_out_the_same_again(compiled: dict[str, Document]) -> None:
    assert not [text for text in compiled.values() if re.search(r" at 0x[0-9a-f]{6,}", text.text)]
    assert stdlib_docstrings() == list(compiled.values())
    assert list(compiled) == sorted(compiled)


def test_reading_docstrings_imports_nothing_here_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = set(sys.modules)
    stdlib_docstrings()
    assert set(sys.modules) == before
    assert capfd.readouterr() == ("", "")


def test_an_interpreter_that_fails_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DataError, match=r"docstrings could not be read with /no/such/python"):
        stdlib_docstrings()


def test_the_text_of_a_module_has_titles_signatures_and_docstrings() -> None:
    text = docstrings.module_text(zlib, set())
    assert text.startswith(f"zlib\n\n{zlib.__doc__.strip()}\n")
    assert "zlib.adler32(data, value=1, /)\n\nCompute an Adler-32 checksum of data." in text


def test_only_public_functions_classes_and_methods_with_docstrings_count() -> None:
    module = ModuleType("made", "About it.")

    class Public:
        """A class."""

        def method(self) -> None:
            """A method."""

        def _hidden(self) -> None:
            """Nobody sees this."""

    def silent() -> None:
        pass

    vars(module).update(Public=Public, _private=Public, silent=silent, number=3)
    expected = "made\n\nAbout it.\n\n\nmade.Public\n\nA class.\n\n\nmade.Public.method\n\nA method.\n"
    assert docstrings.module_text(module, set()) == expected


def test_a_docstring_that_was_seen_is_not_repeated() -> None:
    seen: set[str] = set()
    assert docstrings.module_text(ModuleType("one", "The same."), seen) == "one\n\nThe same.\n"
    assert docstrings.module_text(ModuleType("two", "The same."), seen) == ""


def test_modules_are_found_without_importing_them() -> None:
    code = (
        "import runpy, sys; names = runpy.run_path(sys.argv[1])['module_names']()\n"
        "print('mmap' in names, 'mmap' in sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(docstrings.__file__))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True False\n"
