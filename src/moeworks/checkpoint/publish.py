"""Writing a model's tensors as the safetensors files of a published checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from moeworks.checkpoint.bindings import Binding
from moeworks.checkpoint.source import INDEX, SINGLE

_EXACT = ("e_score_correction_bias", "expert_bias")
"""Selection biases keep their dtype: rounded, they would choose other experts."""


def write_weights(folder: Path, bindings: list[Binding], dtype: torch.dtype | None, shard_bytes: int) -> None:
    """One file, or shards with an index, each collected and written in turn."""
    shards = list(_shards(bindings, dtype, shard_bytes))
    if len(shards) == 1:
        save_file(_collected(shards[0], dtype), folder / SINGLE, metadata={"format": "pt"})
        return
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _collected(shard, dtype)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(bindings: list[Binding], dtype: torch.dtype | None, shard_bytes: int) -> Iterator[list[Binding]]:
    shard: list[Binding] = []
    size = 0
    for binding in bindings:
        item = (dtype or binding.parts[0].dtype).itemsize
        weight = item * sum(part.numel() for part in binding.parts)
        if shard and size + weight > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(binding)
        size += weight
    yield shard


def _collected(bindings: list[Binding], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {b.name: _cast(b, dtype) for b in bindings}


def _cast(binding: Binding, dtype: torch.dtype | None) -> Tensor:
    tensor = binding.collect().cpu()
    keep = dtype is None or binding.name.endswith(_EXACT)
    return tensor if keep else tensor.to(dtype)
