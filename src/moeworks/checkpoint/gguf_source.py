"""A GGUF file as a source of tensors, read through the gguf package and dequantised one at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeworks.errors import CheckpointError, require


class GgufSource:
    """The tensors of one file under their GGUF names, float32 where they were quantised.

    Raises CheckpointError for a file that gguf cannot read, and MissingDependencyError without gguf.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        gguf = require("gguf", extra="gguf")
        self._dequantize = gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.metadata: dict[str, Any] = {
                name: value.contents()
                for name, value in reader.fields.items()
                if not name.startswith(("GGUF.", "tokenizer."))
            }
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        except Exception as error:  # the package raises whatever its parsing runs into
            raise CheckpointError(f"{path}: not a readable GGUF file: {error}") from error
        size = path.stat().st_size
        for tensor in self._tensors.values():
            if tensor.data_offset + tensor.n_bytes > size:
                raise CheckpointError(f"{path}: truncated: {tensor.name} ends beyond its {size} bytes")

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost dimension first, as in torch."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def tensor(self, name: str) -> Tensor:
        """Values of a tensor, dequantised."""
        tensor = self._tensors[name]
        try:
            values = self._dequantize(tensor.data, tensor.tensor_type)
        # What the package raises for types that it does not know, or has no code for.
        except (ValueError, NotImplementedError, KeyError) as error:
            raise CheckpointError(f"{self.path}: {name}: cannot be dequantised: {error}") from error
        array = np.ascontiguousarray(values)
        if array.size != math.prod(self.shape(name)):
            raise CheckpointError(f"{self.path}: {name}: holds {array.size} values, not {self.shape(name)}")
        return torch.from_numpy(array.copy()).view(self.shape(name))

    def release(self, name: str) -> None:
        """Nothing: the system drops pages of the file by itself."""

    def read_into(self, name: str, out: Tensor) -> bool:
        """Always False: values are dequantised first."""
        return False
