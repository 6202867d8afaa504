"""What torch.save wrote, without unpickling: plain containers, numbers, strings and tensors, and no code.

The opcodes of data.pkl are walked (pickletools decodes them and runs nothing); those that build plain data
are interpreted here. The only names that a file may refer to are the ones below, and they become numpy
arrays or dicts. Any other name, and with it any call, is an error.
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
_MOST_ELEMENTS = 1 << 28
"""Of one tensor: a few bytes can claim any shape with strides of 0."""
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
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise DataError(f"{path}: holds big-endian tensors")

            def load(key: str) -> bytes:
                return archive.read(names[f"data/{key}"])

            return _Machine(load, str(path)).run(archive.read(names["data.pkl"]))
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read as a file of torch.save: {error!r}") from error


class _Name(str):
    """A name that the file refers to; nothing is looked up by it."""


class _Machine:
    def __init__(self, load: Callable[[str], bytes], source: str) -> None:
        self._load, self._source = load, source
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
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(self._known(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._known(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._build(function, arguments))
        elif name not in ("PROTO", "FRAME"):
            raise DataError(f"{self._source}: holds more than plain data (opcode {name}); it is not read")

    def _to_mark(self) -> list[Any]:
        at = max(i for i, item in enumerate(self._stack) if item is _MARK)
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _known(self, name: str) -> _Name:
        if name not in _STORAGES and name not in (_REBUILD, _ORDERED):
            raise DataError(f"{self._source}: refers to {name!r}; only tensors and plain data are read")
        return _Name(name)

    def _storage(self, reference: Any) -> np.ndarray:
        kind, storage, key, _, count = reference
        if kind != "storage" or storage not in _STORAGES:
            raise DataError(f"{self._source}: has a reference to something else than a tensor's storage")
        return np.frombuffer(self._load(str(key)), dtype=_STORAGES[storage], count=count)

    def _build(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function == _ORDERED and not arguments:
            return {}
        if function != _REBUILD or not isinstance(function, _Name):
            raise DataError(f"{self._source}: calls {function!r}; only tensors and plain data are read")
        storage, offset, shape, strides = arguments[:4]
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if not isinstance(storage, np.ndarray) or min((*shape, *strides, offset, 0)) < 0:
            raise ValueError("a tensor without a storage")
        if math.prod(shape) > _MOST_ELEMENTS:
            raise ValueError(f"a tensor of {math.prod(shape)} elements")
        if 0 not in shape and last >= len(storage):
            raise ValueError("a tensor that reaches beyond its storage")
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        steps = tuple(step * storage.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy()


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
