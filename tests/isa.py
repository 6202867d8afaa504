"""The instruction sets of the native library, for tests that go through all of them."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest
from native_cases import computing

from moeworks.errors import ConfigError
from moeworks.ops.native.library import library

EVERY_ISA = ("portable", "neon", "avx2", "avx512")


@contextmanager
def using_isa(name: str) -> Generator[None]:
    """Compute with that instruction set; skips the test where processor or build lack it."""
    found = library()
    if isinstance(found, str):
        pytest.skip(found)
    with computing() as lib:
        try:
            lib.use_isa(name)
        except ConfigError as error:
            pytest.skip(str(error))
        yield
