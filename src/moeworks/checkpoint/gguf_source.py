"""A GGUF file as a source of tensors, dequantised one at a time."""

import numpy as np
import torch
from torch import Tensor

from moeworks.gguf_file import GgufFile


class GgufSource:
    """The tensors of a file under their GGUF names, float32 where they were quantised."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._file.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, the outermost dimension first."""
        return self._file.shape(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor's values, copied from the file."""
        return torch.from_numpy(np.array(self._file.values(name)))

    def release(self, name: str) -> None:
        """Do nothing: the system drops the pages of the file by itself."""

    def read_into(self, name: str, out: Tensor) -> bool:
        """False, with `out` untouched: values must be dequantised first."""
        return False
