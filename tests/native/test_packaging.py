"""Wheels with and without a C++ compiler, and the source distribution."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from native.wheel_contents import check_wheel, libraries

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
    pytest.mark.skipif(importlib.util.find_spec("scikit_build_core") is None, reason="no scikit-build-core"),
]


def built(source: Path, folder: Path, kind: str = "wheel", **environment: str) -> tuple[Path, str]:
    """The wheel or sdist that is built from `source`, and what the build said."""
    code = f"import scikit_build_core.build as b; b.build_{kind}({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (path,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path, done.stdout


@pytest.fixture
def source(tmp_path):
    """A copy of what is built, so that nothing is written beside the original."""
    folder = tmp_path / "source"
    for name in ("native", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def python_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("moeworks/")}


COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


@pytest.mark.skipif(COMPILER is None or shutil.which(COMPILER) is None, reason="no C++ compiler")
def test_a_wheel_holds_the_library(source, tmp_path):
    # What it says and holds does not depend on how well it is optimised, the time that it takes does.
    wheel, said = built(source, tmp_path / "wheel", CXXFLAGS="-O0", CMAKE_BUILD_TYPE="Debug")
    check_wheel(wheel)
    assert "moeworks: with its native library" in said
    names = {str(path.relative_to(source / "src")) for path in (source / "src").rglob("*") if path.is_file()}
    assert python_files(wheel) == names | set(libraries(wheel))


def test_without_a_compiler_a_wheel_is_built_and_says_so_in_one_line(source, tmp_path):
    nowhere = str(tmp_path / "no-compiler")
    wheel, said = built(source, tmp_path / "wheel", CXX=nowhere, CC=nowhere)
    assert wheel.name.endswith("-py3-none-any.whl") and not libraries(wheel)
    lines = [line for line in said.splitlines() if line.startswith("moeworks: ")]
    assert lines == [
        "moeworks: installed WITHOUT its native library (no C++ compiler): slower on CPUs, else the same"
    ]
    assert "moeworks/__init__.py" in python_files(wheel)


def test_wheels_for_others_are_never_without_it(source, tmp_path):
    nowhere = str(tmp_path / "no-compiler")
    with pytest.raises(AssertionError, match="CMake"):
        built(source, tmp_path / "wheel", CXX=nowhere, CC=nowhere, CIBUILDWHEEL="1")


def test_the_source_distribution_holds_the_sources(source, tmp_path):
    (source / "native" / "build").mkdir()
    shutil.copy(ROOT / ".gitignore", source)
    (source / "native" / "build" / "junk.o").touch()
    (source / ".venv").mkdir()
    (source / ".venv" / "pyvenv.cfg").touch()
    path, _ = built(source, tmp_path / "sdist", "sdist")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {f"native/{p.name}" for p in (ROOT / "native").iterdir() if p.is_file()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "src/moeworks/__init__.py"} <= names
    assert not any(name.endswith((".o", ".so", ".pyc", ".cfg")) for name in names), sorted(names)
