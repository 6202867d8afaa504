"""No cast into a column's dtype changes a value unseen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from moeworks.errors import ConfigError, DataError
from moeworks.trace import token_columns
from moeworks.trace.block import half_floats, small_ids, whole_numbers


@given(
    nps.arrays(
        st.sampled_from(["i1", "u1", "i4", "u8", "i8", "f4", "f8", "?"]),
        nps.array_shapes(max_dims=2, max_side=4),
    ),
    st.sampled_from([np.int8, np.uint8, np.uint16, np.int32, np.int64, np.bool_]),
)
def test_whole_numbers_keep_their_values_or_are_refused(values, dtype):
    try:
        kept = whole_numbers(values, "field", dtype)
    except ConfigError as error:
        assert str(error).startswith("field = ")
        assert any(not is_kept(value, dtype) for value in values.flat)
        return
    assert kept.dtype == dtype
    assert kept.tolist() == values.tolist()


def is_kept(value, dtype) -> bool:
    value = value.item()
    least, most = (0, 1) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value == value and least <= value <= most and value == int(value)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0.5], np.int32, "must be whole numbers"),
        ([np.nan], np.int32, "must be whole numbers"),
        (["1"], np.int32, "must be whole numbers"),
        ([[1], [2, 3]], np.int32, "no array of numbers"),
        ([2**31], np.int32, "must lie between -2147483648 and 2147483647"),
        ([-1], np.uint8, "must lie between 0 and 255"),
        ([2], np.bool_, "must lie between 0 and 1"),
        ([2**70], np.int64, "must be whole numbers"),
    ],
)
def test_values_that_are_refused(values, dtype, message):
    with pytest.raises(ConfigError, match=message):
        whole_numbers(values, "field", dtype)


def test_half_floats_saturate_and_keep_what_is_not_finite():
    half = half_floats([1.0, 1e9, -1e9, np.inf, -np.inf, np.nan, 1e-9])
    assert half.dtype == np.float16
    assert half[:5].tolist() == [1, 65504, -65504, np.inf, -np.inf]
    assert np.isnan(half[5])
    assert half[6] == 0
    assert half_floats(half) is half


@pytest.mark.parametrize(("experts", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_small_ids(experts, dtype):
    ids = np.array([[experts - 1, 0], [-1, -1]])
    kept = small_ids(ids, np.array([True, False]), experts, "a file")
    assert kept.dtype == dtype
    assert kept.tolist() == [[experts - 1, 0], [0, 0]]


@pytest.mark.parametrize("bad", [-2, 4, 300])
def test_small_ids_refuse_what_is_no_expert(bad):
    with pytest.raises(DataError, match=f"a file: has the id {bad}, and num_experts is 4"):
        small_ids(np.array([[0, bad]]), np.array([True]), 4, "a file")
    with pytest.raises(DataError, match="its ids are float64; they must be integers"):
        small_ids(np.array([[0.0]]), np.array([True]), 4, "a file")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("domain", [0, 2], r"tokens.domain = '0 \.\. 2': must be indices into 2 labels"),
        ("phase", [0, -1], r"tokens.phase = '-1 \.\. 0': must be indices into 3 labels"),
        ("token_id", [0, 2**31], "tokens.token_id"),
        ("valid", np.array([0, 3]), "tokens.valid"),
    ],
)
def test_token_columns_refuse_what_they_cannot_hold(column, values, message):
    with pytest.raises(ConfigError, match=message):
        token_columns(2, domains=("a", "b"), **{column: values})
