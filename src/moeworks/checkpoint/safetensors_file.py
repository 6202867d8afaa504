"""One safetensors file: mapped into memory and read tensor by tensor, or written.

The format (huggingface/safetensors, README): 8 bytes with the header's length, a JSON header that gives each
tensor's dtype, shape and place, then the bytes. Everything in the header is checked before a byte is used.
Our own reader because it gives pages back once a tensor is copied: memory then holds one copy of the weights.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moeworks.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_MAX_HEADER = 100_000_000
_PREFIX = 8
_PIECE = 32_256
"""Elements that are converted at a time; below 32,768 torch uses a single thread."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new file with the permissions of the umask. Raises OSError and SafetensorError."""
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})  # replaces the file by one of mode 0600
    path.chmod(mode)


@dataclass(frozen=True)
class TensorInfo:
    """Place and type of a tensor in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte from the beginning of the file."""
    stop: int


class SafetensorsFile:
    """The tensors of one file. Raises CheckpointError for a header that is not as the format says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            self.tensors = _read_header(path, self._file)
            # A private mapping: torch wants writable memory, and nothing that it writes reaches the file.
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error

    def tensor(self, name: str) -> Tensor:
        """Values of a tensor: a view of the mapped file, valid as long as this object."""
        info = self.tensors[name]
        count = math.prod(info.shape)
        if count == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        flat = torch.frombuffer(self._map, dtype=info.dtype, count=count, offset=info.start)
        return flat.view(info.shape)

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`, contiguous and of the tensor's size, in its own dtype, without touching the map.

        Reading is faster than copying from the map, whose every page must be faulted in. Several threads may.
        """
        info, flat = self.tensors[name], out.view(-1)
        if out.dtype == info.dtype:
            self._read(info.start, flat, name)
            return
        # In pieces that fit a core's cache and that torch converts in this thread alone.
        piece, place = torch.empty(min(_PIECE, flat.numel()), dtype=info.dtype), info.start
        for part in flat.split(_PIECE):
            read = piece[: part.numel()]
            self._read(place, read, name)
            part.copy_(read)
            place += read.nbytes

    def _read(self, place: int, out: Tensor, name: str) -> None:
        rest = memoryview(out.view(torch.uint8).numpy())  # pyrefly: ignore[bad-argument-type]
        while rest:
            count = os.preadv(self._file.fileno(), [rest], place)
            if count == 0:
                raise CheckpointError(f"{self.path}: truncated while {name} was being read")
            rest, place = rest[count:], place + count

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system; a later use reads them again."""
        info = self.tensors[name]
        start = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = info.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _read_header(path: Path, file: Any) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    prefix = file.read(_PREFIX)
    if len(prefix) < _PREFIX:
        raise CheckpointError(f"{path}: truncated: {size} bytes hold no safetensors header")
    (length,) = struct.unpack("<Q", prefix)
    if length > _MAX_HEADER or _PREFIX + length > size:
        raise CheckpointError(
            f"{path}: truncated, or no safetensors file: its header should take {length} of {size} bytes"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not an object")
    header.pop("__metadata__", None)
    start = _PREFIX + length
    infos = {name: _info(path, name, entry, start, size) for name, entry in header.items()}
    _check_overlaps(path, infos)
    return infos


def _info(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    """One entry of the header, checked."""
    try:
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: its entry in the header is not valid") from error
    if kind not in DTYPES:
        raise CheckpointError(f"{path}: {name}: unknown dtype {kind!r}; known: {', '.join(DTYPES)}")
    numbers = (*shape, first, last)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise CheckpointError(f"{path}: {name}: shape or place is not of natural numbers")
    expected = math.prod(shape) * DTYPES[kind].itemsize
    if last - first != expected:
        raise CheckpointError(
            f"{path}: {name}: {kind} {list(shape)} takes {expected} bytes, the header gives it {last - first}"
        )
    if start + last > size:
        raise CheckpointError(f"{path}: truncated: {name} ends at byte {start + last} of {size}")
    return TensorInfo(DTYPES[kind], shape, start + first, start + last)


def _check_overlaps(path: Path, infos: dict[str, TensorInfo]) -> None:
    last, owner = 0, ""
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start < last and info.stop > info.start:
            raise CheckpointError(f"{path}: {name} overlaps {owner}")
        if info.stop > last:
            last, owner = info.stop, name
