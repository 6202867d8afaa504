"""Published checkpoints on disk: folders that other programs read, and which of their files are replaced.

A checkpoint may be written into a folder that holds one already, beside files that are nobody's business:

    1. The new files are written into `.moeworks-save/` inside the folder. The old checkpoint stays readable.
    2. config.json goes, without which nobody takes the folder for a checkpoint, and the old weights' entry.
    3. The new files move to their places, config.json last. The new checkpoint is readable.
    4. What is left of the old one goes.

A process that is killed between 2 and 3 leaves a folder that `published_config` refuses, with all new files.
Open files and memory-mapped weights of the old checkpoint stay valid, since no file is written over.
"""

import json
import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeworks.checkpoint.bindings import Binding
from moeworks.checkpoint.safetensors_file import write_tensors
from moeworks.checkpoint.source import INDEX, SINGLE, read_json
from moeworks.errors import CheckpointError
from moeworks.files import LOCK, locked, make_folder, remove, sync_folder, sync_tree

CONFIG = "config.json"
STAGING = ".moeworks-save"
"""Folder inside a published checkpoint that holds the new files until all of them are written."""
COMPANIONS = frozenset({
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
    "vocab.txt", "merges.txt", "added_tokens.json", "tiktoken.model", "tokenizer.tiktoken", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
})  # fmt: skip
"""Files of a published checkpoint that make its tokenizer and say how to generate."""
_EXACT = ("e_score_correction_bias", "expert_bias")
"""Names of tensors that keep their dtype: rounded selection biases would choose other experts."""
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_LISTED = 3


@contextmanager
def published_folder(folder: Path, replaced: frozenset[str] = frozenset()) -> Generator[Path]:
    """An empty folder to write the files of a checkpoint into; they appear in `folder` when the block ends.

    `folder` is made, empty, or a published checkpoint, which is replaced: its weights, its config.json, the
    files that `replaced` names, and those that the new one brings. Everything else in it stays. When the
    block fails, all is as it was. Raises CheckpointError for any other `folder`, DataError when another
    process is saving there, and OSError when the disk refuses.
    """
    place = Path(os.path.realpath(folder))  # a link stays a link
    check_replaceable(folder)
    is_new = make_folder(place)
    staging = place / STAGING
    try:
        with locked(place):
            remove(staging)  # of a save that was killed
            staging.mkdir()
            try:
                yield staging
                _check_names(place, staging)
                sync_tree(staging)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _replace(place, staging, replaced)
    except BaseException:
        with suppress(OSError):  # not empty once its new files are complete
            if is_new:
                place.rmdir()
        raise


def check_replaceable(folder: Path) -> None:
    """Raise CheckpointError unless a checkpoint can be written to `folder` without loss of anything else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: is a file; a checkpoint is written to a folder: choose another name"
        )
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if names and not (folder / STAGING).is_dir() and published_config(folder) is None:
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise CheckpointError(
            f"{folder}: holds {listed} and no published checkpoint: choose a folder that is new or empty, or"
            " one that holds a published checkpoint, which is then replaced"
        )


def published_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a published checkpoint; None where `folder` is a run or something else.

    Raises CheckpointError where config.json cannot be read, or a save was killed between the old files and
    the new.
    """
    file = folder / CONFIG
    if not file.is_file() and (folder / STAGING).is_dir():
        raise CheckpointError(
            f"{folder}: a save into this folder was interrupted: it holds no whole checkpoint; save into it"
            f" again, or finish by moving all files of {folder / STAGING} into it, {CONFIG} last"
        )
    if not file.is_file() or (folder / "checkpoint.json").is_file():
        return None
    config = read_json(file)
    return config if "model_type" in config or "architectures" in config else None


def read_companions(folder: Path) -> dict[str, bytes]:
    """The contents of those COMPANIONS that are in `folder`. Raises CheckpointError for an unreadable one."""
    found = {}
    for name in sorted(COMPANIONS):
        path = folder / name
        if path.is_file():
            try:
                found[name] = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return found


def _check_names(place: Path, staging: Path) -> None:
    for path in staging.iterdir():
        if (place / path.name).is_dir():
            raise CheckpointError(f"{place / path.name}: is a folder, where a file of the checkpoint belongs")


def _replace(place: Path, staging: Path, replaced: frozenset[str]) -> None:
    """Do steps 2 to 4; each is on the disk before the next begins."""
    new = {path.name for path in staging.iterdir()}
    old = {path.name for path in place.iterdir() if path.name in replaced or _SHARD.fullmatch(path.name)}
    for name in (CONFIG, SINGLE, INDEX):
        (place / name).unlink(missing_ok=True)
    sync_folder(place)
    for name in sorted(new - {CONFIG}):
        os.rename(staging / name, place / name)
    sync_folder(place)
    os.rename(staging / CONFIG, place / CONFIG)
    sync_folder(place)
    for name in old - new:
        remove(place / name)
    staging.rmdir()


def write_weights(folder: Path, bindings: list[Binding], dtype: torch.dtype | None, shard_bytes: int) -> None:
    """Write one file, or shards with an index; each is collected and written in turn."""
    shards = list(_shards(bindings, dtype, shard_bytes))
    if len(shards) == 1:
        write_tensors(folder / SINGLE, _collected(shards[0], dtype))
        return
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _collected(shard, dtype)
        write_tensors(folder / name, tensors)
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
