"""Arrays are read as numpy wrote them, and no header makes a reader take more memory than the file has."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from moeworks.errors import DataError
from moeworks.trace.npy import read_npy, read_npy_file, read_npz_file


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claiming(shape: tuple[int, ...], body: bytes = b"", dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + body


@settings(max_examples=50)
@given(
    nps.arrays(
        st.sampled_from(["u1", "<i8", ">i4", "<f2", "<f8", "?"]),
        nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False},
    ),
    st.booleans(),
)
def test_as_numpy_reads_them(array, by_columns):
    array = np.asfortranarray(array) if by_columns else array
    read = read_npy(npy(array), "a")
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert np.array_equal(read, array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path, save):
    save(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.float32(1))
    read = read_npz_file(tmp_path / "a.npz")
    assert (read["x"].tolist(), read["y"].tolist()) == ([[0, 1, 2], [3, 4, 5]], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (claiming((1 << 40,)), "does not fit the 0 bytes"),
        (claiming((2,), b"abc"), "does not fit the 3 bytes"),
        (claiming((0, 10**9, 1)), "is an empty array of the shape"),
        (claiming((-1, -2), b"ab"), "must not be negative"),
        (claiming((1,), b"12345678", "|O"), "which is not read"),
        (claiming((1,), b"", "|V0"), "which is not read"),
        (b"", "cannot be read as an .npy array"),
        (b"\x93NUMPY\x01\x00\x05\x00{{{{\n", "cannot be read as an .npy array"),
    ],
)
def test_headers_that_claim_too_much(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_npy(content, "a")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_npy_file(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=rf"a\.npz: x.*{message}"):
        read_npz_file(tmp_path / "a.npz")


def test_an_archive_that_inflates_too_far(tmp_path):
    """150 MB of zeros in 150 kB are refused before they are inflated."""
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(150):
            member.write(bytes(1_000_000))
    with pytest.raises(DataError, match="too many for its size"):
        read_npz_file(tmp_path / "a.npz")


def test_other_compressions_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy(np.zeros(2)))
    with pytest.raises(DataError, match="another way than numpy's"):
        read_npz_file(tmp_path / "a.npz")
