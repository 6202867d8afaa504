"""The native library under the compilers' sanitizers: driver.cpp says what is run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None or shutil.which(COMPILER) is None, reason="no C++ compiler"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
]


def output(*command: object, **options: object) -> str:
    """What the command prints; its failure is the test's, with all that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def has_runtime(sanitizer: str, folder: Path) -> bool:
    """Whether the compiler comes with the sanitizer's library."""
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    command = [str(COMPILER), f"-fsanitize={sanitizer}", "empty.cpp", "-o", "empty"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_driver_runs_clean(sanitizer, tmp_path):
    if not has_runtime(sanitizer, tmp_path):
        pytest.skip(f"the compiler has no library for -fsanitize={sanitizer}")
    output(
        "cmake",
        *("-S", ROOT / "native", "-B", tmp_path / "build"),
        f"-DMW_SANITIZE={sanitizer}",
        f"-DMW_DRIVER={Path(__file__).parent / 'driver.cpp'}",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O0",  # compiles in half the time of -O1,
    )
    output("cmake", "--build", tmp_path / "build", "--parallel", 2)
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1"}
    assert output(tmp_path / "build" / "driver", env=environment) == "ok\n"
