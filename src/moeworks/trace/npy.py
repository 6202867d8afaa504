"""Arrays of .npy and .npz files, which take no more memory than the file accounts for.

numpy.load allocates what a header claims before it reads, and inflates a member to any size.
"""

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from moeworks.errors import DataError

_EXPANSION, _ALLOWANCE = 64, 1 << 26
"""Inflated bytes of an .npz per byte of the file, and beside that; routing deflates to a half or a tenth."""
_MOST_EMPTY = 1 << 20
"""The product of the sides of an empty array, its zeros left out: readers make a layer of each column."""


def read_npy(content: bytes, source: str) -> np.ndarray:
    """The array in the bytes of an .npy file, read-only.

    Raises DataError, naming `source`, for pickles and for headers that do not fit the bytes behind them.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, by_columns, dtype = read_header(file)
    except Exception as error:  # numpy parses the header as Python text, and any of its parsers may give up
        raise DataError(f"{source}: cannot be read as an .npy array: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise DataError(f"{source}: holds {dtype}, which is not read; numbers are")
    if any(side < 0 for side in shape) or len(shape) > 16:
        raise DataError(f"{source}: has the shape {shape}; sides must not be negative, and at most 16")
    body = memoryview(content)[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise DataError(f"{source}: {dtype} {shape} does not fit the {len(body):,} bytes of the array")
    if 0 in shape and math.prod(max(side, 1) for side in shape) > _MOST_EMPTY:
        raise DataError(f"{source}: is an empty array of the shape {shape}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if by_columns else "C")


def read_npy_file(path: Path) -> np.ndarray:
    """The array of an .npy file. Raises DataError for what is none."""
    try:
        return read_npy(path.read_bytes(), str(path))
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as an .npy array: {error}") from error


def read_npz_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises DataError for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
                raise DataError(f"{path}: is compressed in another way than numpy's")
            most = _EXPANSION * path.stat().st_size + _ALLOWANCE
            if sum(member.file_size for member in members) > most:
                raise DataError(f"{path}: would take more than {most:,} bytes, too many for its size")
            names = [member.filename.removesuffix(".npy") for member in members]
            return {
                name: read_npy(archive.read(member), f"{path}: {name}")
                for name, member in zip(names, members, strict=True)
            }
    except (
        OSError, EOFError, MemoryError, RuntimeError, LookupError, ValueError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise DataError(f"{path}: cannot be read as an .npz file: {error}") from error
