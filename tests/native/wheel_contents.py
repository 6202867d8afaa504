"""Checks finished wheels: python wheel_contents.py WHEEL... Each holds one native library, which loads."""

import ctypes
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = "moeworks/ops/native/"
SUFFIXES = (".so", ".dylib", ".dll")


def libraries(wheel: Path) -> list[str]:
    """The names of the shared libraries in the wheel."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(SUFFIXES)]


def check_wheel(wheel: Path) -> None:
    """Raises AssertionError when the wheel is not what is shipped."""
    assert wheel.name.split("-")[2:4] == ["py3", "none"], f"{wheel.name}: not for every Python"
    assert not wheel.name.endswith("-any.whl"), f"{wheel.name}: without the library"
    found = libraries(wheel)
    assert len(found) == 1 and found[0].startswith(FOLDER), f"{wheel.name}: {found}"
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(zipfile.ZipFile(wheel).extract(found[0], folder))
        library.mw_isa.restype = library.mw_interface.restype = ctypes.c_char_p
        print(f"{wheel.name}: interface {library.mw_interface().decode()[:12]}, {library.mw_isa().decode()}")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        check_wheel(Path(argument))
