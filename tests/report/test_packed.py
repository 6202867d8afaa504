"""Packed arrays, unpacked as the page's script does."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moeworks.report.packed import pack_counts, pack_numbers


def codes(packed, dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["codes"]), dtype).reshape(packed["shape"])


@given(
    arrays.arrays(
        np.float64, arrays.array_shapes(max_dims=3), elements=st.floats(-1e6, 1e6) | st.just(np.nan)
    )
)
def test_numbers_come_back(values):
    packed = pack_numbers(values)
    found = codes(packed, "<u2")
    assert np.array_equal(found == 0xFFFF, np.isnan(values))
    back = packed["low"] + found / 0xFFFE * packed["span"]
    known = ~np.isnan(values)
    np.testing.assert_allclose(back[known], values[known], rtol=0, atol=packed["span"] / 130_000)


def test_infinities_and_nothing():
    packed = pack_numbers(np.array([-np.inf, 1, 2, np.inf]))
    assert codes(packed, "<u2").tolist() == [0, 0, 0xFFFE, 0xFFFE]
    assert pack_numbers(np.array([np.nan]))["low"] == 0
    assert pack_numbers(np.zeros((0, 3)))["shape"] == [0, 3]


@pytest.mark.parametrize(("largest", "width"), [(254, 1), (255, 2), (65_534, 2), (65_535, 4), (2**32 - 2, 4)])
def test_counts_take_as_many_bytes_as_the_largest(largest, width):
    packed = pack_counts(np.array([[-1, 0], [largest, 1]]))
    assert packed["width"] == width
    assert (codes(packed, f"<u{width}").astype(np.int64) - 1).tolist() == [[-1, 0], [largest, 1]]
