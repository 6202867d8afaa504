"""GGUF files opened through the gguf package: one, or the parts of a model that is split over several.

llama.cpp calls the parts NAME-00001-of-00003.gguf and so on. The first holds the metadata. No torch.
"""

import math
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from moeworks.errors import CheckpointError, require

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_LISTED = 3


class GgufFile:
    """The metadata and the tensors of a model.

    Raises CheckpointError for files that are damaged, missing or no parts of one model, and
    MissingDependencyError without gguf.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = require("gguf", extra="gguf")
        paths = gguf_parts(path)
        readers = [self._open(part) for part in paths]
        self.fields: dict[str, Any] = {
            name: field.contents()
            for name, field in readers[0].fields.items()
            if not name.startswith("GGUF.")
        }
        self._tensors: dict[str, Any] = {}
        for number, (part, reader) in enumerate(zip(paths, readers, strict=True)):
            _check_split(part, reader, number, len(paths))
            for tensor in reader.tensors:
                if tensor.name in self._tensors:
                    raise CheckpointError(f"{part}: {tensor.name} is in an earlier part too")
                self._tensors[tensor.name] = tensor
        count = int(self.fields.get("split.tensors.count", len(self._tensors)))
        if count != len(self._tensors):
            raise CheckpointError(
                f"{path}: split.tensors.count = {count}, and its parts hold {len(self._tensors)}"
            )

    @property
    def metadata(self) -> dict[str, Any]:
        """What is said of the model: all but the tokenizer and the parts."""
        return {
            name: value
            for name, value in self.fields.items()
            if not name.startswith(("tokenizer.", "split."))
        }

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._tensors)

    @property
    def stored(self) -> str:
        """The type that most of the numbers are stored in, by llama.cpp's name, as in Q4_K."""
        sizes: Counter[str] = Counter()
        for tensor in self._tensors.values():
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        return sizes.most_common(1)[0][0] if sizes else "nothing"

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, the outermost dimension first, as in torch."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def values(self, name: str) -> Any:
        """A tensor as a numpy array, float32 where it was quantised. Raises CheckpointError."""
        tensor = self._tensors[name]
        try:
            array = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # What the package raises for types that it does not know, or has no code for.
        except (ValueError, NotImplementedError, KeyError) as error:
            raise CheckpointError(f"{self.path}: {name}: cannot be dequantised: {error}") from error
        if array.size != math.prod(self.shape(name)):
            raise CheckpointError(f"{self.path}: {name}: holds {array.size} values, not {self.shape(name)}")
        return array.reshape(self.shape(name))

    def _open(self, path: Path) -> Any:
        try:
            reader = self._gguf.GGUFReader(path)
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        except Exception as error:  # the package raises whatever its parsing runs into
            raise CheckpointError(f"{path}: truncated, or not a GGUF file: {error}") from error
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > size:
                raise CheckpointError(f"{path}: truncated: {tensor.name} ends beyond its {size} bytes")
        return reader


def gguf_parts(path: Path) -> list[Path]:
    """The files of the model that `path` belongs to, the first one first. Raises CheckpointError."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    name, number, count = named[1], int(named[2]), int(named[3])
    if not 1 <= number <= count:
        raise CheckpointError(f"{path}: there is no part {number} of {count}")
    parts = [path.with_name(f"{name}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = ", ".join(missing[:_LISTED])
        raise CheckpointError(f"{path}: one of {count} files of one model; missing beside it: {listed}{more}")
    return parts


def _check_split(path: Path, reader: Any, number: int, count: int) -> None:
    """What a file says of itself must be what its name says."""

    def said(key: str, default: int) -> int:
        field = reader.fields.get(f"split.{key}")
        return default if field is None else int(field.contents())

    parts = said("count", count)
    if parts > 1 and count == 1:
        raise CheckpointError(
            f"{path}: part {said('no', 0) + 1} of {parts}; name the parts NAME-00001-of-{parts:05d}.gguf and"
            " so on, in one folder, so that the others are found"
        )
    if (said("no", number), parts) != (number, count):
        raise CheckpointError(
            f"{path}: says that it is part {said('no', number) + 1} of {parts}, its name says"
            f" {number + 1} of {count}"
        )
