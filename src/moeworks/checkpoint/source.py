"""Where the tensors of a published checkpoint come from: a folder of safetensors files, quantised or not.

A source knows names and shapes before it reads anything. Pickles (`.bin`, `.pt`) are never opened.
"""

import json
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from moeworks.checkpoint.safetensors_file import SafetensorsFile
from moeworks.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_JOINED = (".experts.gate_up_proj", ".experts.down_proj")


@runtime_checkable
class Source(Protocol):
    """Named tensors that are read one at a time."""

    def names(self) -> set[str]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, known without reading it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Values of a tensor."""
        ...

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's values, if the source holds any."""
        ...

    def read_into(self, name: str, out: Tensor) -> bool:
        """Fill `out` straight from the file; False, with `out` untouched, where the file's layout differs.

        Unlike the other methods, this one may run in several threads at once.
        """
        ...


class FolderSource:
    """The safetensors files of a folder: one, or several with an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, SafetensorsFile] = {}
        single, index = folder / SINGLE, folder / INDEX
        if single.is_file():
            file = SafetensorsFile(single)
            self._files = dict.fromkeys(file.tensors, file)
        elif index.is_file():
            self._open_shards(index)
        else:
            raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX}{_about_pickles(folder)}")

    def names(self) -> set[str]:
        """Names of the tensors of all files."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, as the file's header says."""
        return self._files[name].tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Data type of a tensor, as the file's header says."""
        return self._files[name].tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Values of a tensor, a view of the memory-mapped file."""
        return self._files[name].tensor(name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system."""
        self._files[name].release(name)

    def read_into(self, name: str, out: Tensor) -> bool:
        """Fill `out` straight from the file; False where the layouts differ."""
        real = self.dtype(name).is_floating_point
        if out.device.type != "cpu" or not out.is_contiguous() or not real:
            return False
        self._files[name].read_into(name, out)
        return True

    def _open_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: has no weight_map")
        shards: dict[str, SafetensorsFile] = {}
        for name, file_name in weight_map.items():
            if file_name not in shards:
                shards[file_name] = SafetensorsFile(self._shard(index, name, file_name))
            if name not in shards[file_name].tensors:
                raise CheckpointError(f"{index}: {name} should be in {file_name}, which does not hold it")
            self._files[name] = shards[file_name]
        for file_name, shard in shards.items():
            unlisted = sorted(shard.tensors.keys() - weight_map.keys())
            if unlisted:
                raise CheckpointError(f"{index}: {file_name} holds {unlisted[0]}, which is not listed")

    def _shard(self, index: Path, name: str, file_name: Any) -> Path:
        """The path of a shard, inside the folder."""
        plain = (
            isinstance(file_name, str) and Path(file_name).name == file_name and file_name not in ("", "..")
        )
        if not plain or "\\" in file_name or not file_name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: {name} is in {file_name!r}: a shard is a .safetensors file in the same folder"
            )
        path = self.folder / file_name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {INDEX} lists it")
        return path


class RoutedExpertsSource:
    """A source without the weights that transformers gives identity experts, which compute nothing.

    They come after the routed experts, each with a number or all in one tensor.
    """

    def __init__(self, source: Source, routed: int, identity: int) -> None:
        self._source, self._routed = source, routed
        numbers = {name: _EXPERT.search(name) for name in source.names()}
        self._names = {name for name, found in numbers.items() if not found or int(found[1]) < routed}
        self._joined = {
            name
            for name in self._names
            if name.endswith(_JOINED) and source.shape(name)[:1] == (routed + identity,)
        }

    def names(self) -> set[str]:
        """The names of all tensors but those of identity experts."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without identity experts."""
        shape = self._source.shape(name)
        return (self._routed, *shape[1:]) if name in self._joined else shape

    def tensor(self, name: str) -> Tensor:
        """A tensor's values, without identity experts."""
        values = self._source.tensor(name)
        return values[: self._routed] if name in self._joined else values

    def release(self, name: str) -> None:
        """Give the pages of a tensor back to the system."""
        self._source.release(name)

    def read_into(self, name: str, out: Tensor) -> bool:
        """Fill `out` straight from the file; False for a tensor of which only a part is wanted."""
        return name not in self._joined and self._source.read_into(name, out)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not an object")
    return content


def _about_pickles(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if not pickles:
        return ""
    return f"; {pickles[0]} is a pickle, which could run any code and is never opened: convert it elsewhere"
