"""Finding, loading and calling the native library (native/moeworks.h is its interface).

It is built when moeworks is installed from source with a C++ compiler at hand. Everything works without it.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from moeworks.errors import ConfigError
from moeworks.ops.native.structs import STRUCTS, TensorStruct

_DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.int64: 2,
    torch.bool: 3,
    torch.int32: 4,
    torch.float64: 5,
}
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_HEADER = Path(__file__).parents[4] / "native" / "moeworks.h"
"""In a checkout, where an editable install may have kept the library of an earlier build."""
_FILE = f"{'' if sys.platform == 'win32' else 'lib'}moeworks{_SUFFIX}"


def described(tensor: torch.Tensor | None) -> TensorStruct:
    """C description of a CPU tensor, or of an absent one for None. The tensor must outlive the call."""
    if tensor is None:
        return TensorStruct()
    return TensorStruct.of(tensor.data_ptr(), tensor.shape, tensor.stride(), _DTYPES[tensor.dtype])


class Library:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        """Load the file at `path`. Raises OSError when it cannot be loaded or has another interface."""
        self.path = path
        self._lib = lib = ctypes.CDLL(str(path))
        if not _fits(lib):
            raise OSError(f"{path} was built from another version of its source: install moeworks again")
        lib.mw_last_error.restype = lib.mw_isa.restype = ctypes.c_char_p
        lib.mw_allocate.restype = ctypes.c_void_p
        lib.mw_allocate.argtypes = [ctypes.c_int64]
        lib.mw_free.argtypes = [ctypes.c_void_p]
        lib.mw_free.restype = lib.mw_use_openmp.restype = lib.mw_release_cache.restype = None
        lib.mw_cached_bytes.restype = ctypes.c_int64
        lib.mw_use_openmp.argtypes = [ctypes.c_void_p]
        self.use_own_threads(False)

    def call(self, name: str, *arguments: object) -> None:
        """Call an entry point that returns a status. Raises ConfigError with the library's message."""
        if getattr(self._lib, name)(*arguments) != 0:
            raise ConfigError(f"native {name}: {self._lib.mw_last_error().decode()}")

    @property
    def isa(self) -> str:
        """The instruction set in use: avx512, avx2, neon or portable."""
        return self._lib.mw_isa().decode()

    def use_isa(self, name: str) -> None:
        """Use another instruction set. Raises ConfigError when processor or build lack it."""
        self.call("mw_set_isa", name.encode())

    def use_own_threads(self, own: bool) -> None:
        """Compute on threads of the library's own, or on those that torch computes on (the default).

        Two sets of threads would take the cores from each other: torch's spin for a while after an operator.
        """
        self._lib.mw_use_openmp(None if own else torch_openmp())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised CPU tensor whose memory comes from, and goes back to, the library's cache.

        The system clears every new page, which for the weight gradients of many small experts takes longer
        than computing them.
        """
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        size = count * dtype.itemsize
        address = self._lib.mw_allocate(size)
        if not address:
            raise MemoryError(f"native: {size} bytes: {self._lib.mw_last_error().decode()}")
        buffer = _bytes_type(size).from_address(address)
        buffer.lease = _Lease(address, self._lib.mw_free)  # the tensor keeps the buffer, and that the lease
        return torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)

    @property
    def cached_bytes(self) -> int:
        """Bytes of freed tensors that the library keeps for the next step."""
        return self._lib.mw_cached_bytes()

    def release_cache(self) -> None:
        """Return the cached memory to the system."""
        self._lib.mw_release_cache()


class _Lease:
    """Owner of memory of the library, which it frees when it is collected."""

    def __init__(self, address: int, free: Callable[[int], None]) -> None:
        self._address, self._free = address, free

    def __del__(self) -> None:
        self._free(self._address)


@lru_cache(maxsize=256)
def _bytes_type(size: int) -> Any:
    """An array type whose objects can hold a lease as an attribute."""
    return type("_LeasedBytes", (ctypes.c_char * size,), {})


@cache
def library() -> Library | str:
    """The loaded library, or the reason why there is none, as text."""
    path = _find()
    if path is None:
        return "moeworks was installed without its native library (no C++ compiler at that time)"
    try:
        return Library(path)
    except OSError as error:
        return f"the native library cannot be loaded: {error}"


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Why there is no library, or None: a constant for torch.compile, which cannot trace loading."""
    found = library()
    return found if isinstance(found, str) else None


def _fits(lib: ctypes.CDLL) -> bool:
    """Whether the library has the structures of this package, and its header where that is at hand."""
    try:
        lib.mw_interface.restype, lib.mw_size_of.restype = ctypes.c_char_p, ctypes.c_int64
        interface = lib.mw_interface().decode()
        sizes = {name: lib.mw_size_of(name.encode()) for name in STRUCTS}
    except AttributeError:
        return False
    header = _HEADER.read_bytes() if _HEADER.is_file() else None
    if header is not None and hashlib.sha256(header).hexdigest() != interface:
        return False
    return sizes == {name: ctypes.sizeof(struct) for name, struct in STRUCTS.items()}


def _find() -> Path | None:
    """Path of the library: beside this file or, in an editable install, among the installed files."""
    beside = Path(__file__).parent / _FILE
    if beside.is_file():
        return beside
    try:
        installed = metadata.files("moeworks") or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in installed if file.name == _FILE)
    return next((path for path in paths if path.is_file()), None)


@cache
def torch_openmp() -> int | None:
    """The address of the function that starts a parallel region in torch's OpenMP library, if it has one."""
    path = Path(torch.__file__).parent / "lib" / f"libtorch_cpu{_SUFFIX}"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
