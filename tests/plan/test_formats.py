import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.errors import ConfigError
from moeworks.plan.formats import FORMATS, value_bytes, weight_format

SIZES = st.integers(1, 700)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "size"),
    [
        ("fp32", 3, 5, 60),
        ("bf16", 3, 5, 30),
        ("fp8", 256, 384, 256 * 384 + 2 * 3 * 4),
        ("fp8", 576, 7168, 576 * 7168 + 5 * 56 * 4),  # 4.5 blocks of rows: DeepSeek-V3's kv_a_proj
        ("int8", 10, 300, 10 * 300 + 10 * 2),
        ("int4", 10, 300, 10 * 150 + 10 * 3 * 2),
        ("mxfp4", 10, 64, 10 * 32 + 10 * 2),
    ],
)
def test_a_matrix_with_its_scales(name, rows, columns, size):
    assert FORMATS[name].matrix_bytes(rows, columns) == size


@given(SIZES, SIZES)
def test_narrower_formats_take_less(rows, columns):
    size = {name: form.matrix_bytes(rows, columns) for name, form in FORMATS.items()}
    assert size["fp32"] == 2 * size["bf16"]
    assert size["fp8"] <= size["bf16"] + 4 * (rows // 128 + 1) * (columns // 128 + 1)
    assert -(-rows * columns // 2) <= size["int4"] <= size["bf16"] + 2 * rows


@given(SIZES, SIZES, SIZES)
def test_bytes_grow_with_a_matrix(rows, columns, more):
    for form in FORMATS.values():
        assert form.matrix_bytes(rows + more, columns) >= form.matrix_bytes(rows, columns)
        assert form.matrix_bytes(rows, columns + more) >= form.matrix_bytes(rows, columns)


def test_names_and_other_names():
    assert weight_format("FP8").name == "fp8"
    assert weight_format("float16") is weight_format("bf16")
    assert [value_bytes(name) for name in ("fp32", "bf16", "fp16", "fp8")] == [4, 2, 2, 1]


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match=r"dtype = 'fp7': unknown; did you mean 'fp8'"):
        weight_format("fp7")
    with pytest.raises(ConfigError, match=r"kv_dtype = 'int3': unknown; known: bf16, fp32, fp8"):
        value_bytes("int3")
