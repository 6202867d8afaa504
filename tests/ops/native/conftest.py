"""What tests of the native library share."""

import pytest

from moeworks.ops.native.library import Library, library


@pytest.fixture(scope="session")
def native_library() -> Library:
    """The library; the test is skipped, with the reason, where there is none."""
    found = library()
    if isinstance(found, str):
        pytest.skip(found)
    return found
