"""What torch.save wrote, without unpickling: plain containers, numbers, strings and tensors, and no code.

The opcodes of data.pkl are walked (pickletools decodes them and runs nothing); those that build plain data
are interpreted here. The only names that a file may refer to are the ones below, and they become numpy
arrays or dicts. Any other name, and with it any call, is an error.

A file of n bytes takes memory in proportion to n, whatever it claims: torch.save compresses nothing, so
compressed members are refused, each storage is read once, and all tensors together may take 16 n + 1 MiB.
"""

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moeworks.errors import DataError

_STORAGES = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_MARK = object()
_EXPANSION, _ALLOWANCE = 16, 1 << 20
"""Bytes of all tensors per byte of the file, and beside that: with strides of 0, as `expand` makes them, or
many tensors of one storage, a few bytes can claim any amount of memory."""
_DAMAGED = (
    OSError, EOFError, MemoryError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
    OverflowError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What zipfile, pickletools and the steps below raise for bytes that make no sense."""


def read_torch_archive(path: str | Path) -> Any:
    """The object in a file of torch.save (zip format, since torch 1.6), tensors as numpy arrays.

    Raises DataError for a file of another kind, and for one that holds anything else than plain data.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "data.pkl" not in names:
                raise DataError(f"{path}: not a file of torch.save: it has no data.pkl")
            size = path.stat().st_size
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise DataError(f"{path}: has compressed members; torch.save writes none")
            if sum(member.file_size for member in members) > size:
                raise DataError(f"{path}: its members claim more bytes than the file has")
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise DataError(f"{path}: holds big-endian tensors")

            def load(key: str) -> bytes:
                return archive.read(names[f"data/{key}"])

            return _Machine(load, str(path), _EXPANSION * size + _ALLOWANCE).run(
                archive.read(names["data.pkl"])
            )
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read as a file of torch.save: {error!r}") from error


class _Name(str):
    """A name that the file refers to; nothing is looked up by it."""


class _Machine:
    def __init__(self, load: Callable[[str], bytes], source: str, most_bytes: int) -> None:
        self._load, self._source, self._bytes_left = load, source, most_bytes
        self._storages: dict[str, bytes] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("data.pkl ends without STOP")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSHES:
            stack.append(_PUSHES[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            items = self._to_mark()
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._to_mark()
            _exact(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            if not all(
                type(key) in _SCALARS for key in items[::2]
            ):  # to hash nested tuples can take for ever
                raise DataError(f"{self._source}: has a dict with keys that are no numbers or strings")
            _exact(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(self._known(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._known(f"{_exact(module, str)} {_exact(attribute, str)}"))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._build(function, arguments))
        elif name not in ("PROTO", "FRAME"):
            raise DataError(f"{self._source}: holds more than plain data (opcode {name}); it is not read")

    def _to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _known(self, name: str) -> _Name:
        if name not in _STORAGES and name not in (_REBUILD, _ORDERED):
            raise DataError(f"{self._source}: refers to {name!r}; only tensors and plain data are read")
        return _Name(name)

    def _storage(self, reference: Any) -> np.ndarray:
        kind, storage, key, _, count = _exact(reference, tuple)
        if _exact(kind, str) != "storage" or not isinstance(storage, _Name) or storage not in _STORAGES:
            raise DataError(f"{self._source}: has a reference to something else than a tensor's storage")
        if _exact(key, str) not in self._storages:
            self._storages[key] = self._load(key)
        return np.frombuffer(self._storages[key], dtype=_STORAGES[storage], count=_exact(count, int))

    def _build(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or function not in (_REBUILD, _ORDERED):
            raise DataError(
                f"{self._source}: calls more than tensors need; only tensors and plain data are read"
            )
        arguments = _exact(arguments, tuple)
        if function == _ORDERED and not arguments:
            return {}
        storage, offset, shape, strides = arguments[:4]
        numbers = (_exact(offset, int), *_exact(shape, tuple), *_exact(strides, tuple))
        if not isinstance(storage, np.ndarray) or min(_exact(number, int) for number in numbers) < 0:
            raise ValueError("a tensor without a storage")
        self._bytes_left -= math.prod(max(size, 1) for size in shape) * storage.itemsize
        if self._bytes_left < 0:
            raise ValueError(f"a tensor of {math.prod(shape)} elements, too many for a file of this size")
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        if last >= len(storage):
            raise ValueError("a tensor that reaches beyond its storage")
        steps = tuple(step * storage.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy()


def _exact(value: Any, kind: type) -> Any:
    """`value`, whose type must be `kind`: its text or hash could take for ever otherwise."""
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


_SCALARS = (str, int, float, bool, bytes, type(None))
_PUSHES: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT", "BINUNICODE"}
    | {"SHORT_BINUNICODE", "UNICODE", "BINBYTES", "SHORT_BINBYTES"}
)
