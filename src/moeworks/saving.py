"""Writing models as published checkpoints that transformers, vLLM and others read."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from moeworks.checkpoint.bindings import bind
from moeworks.checkpoint.publish import (
    COMPANIONS,
    CONFIG,
    check_replaceable,
    published_folder,
    write_weights,
)
from moeworks.config import ModelConfig
from moeworks.data.tokenizer_files import gguf_tokenizer_files, run_tokenizer_files
from moeworks.errors import CheckpointError, ConfigError, check
from moeworks.families import FAMILIES, Family, family_named
from moeworks.models.decoder import Decoder
from moeworks.models.origin import Origin
from moeworks.pretrained import changed, state_of

SHARD_BYTES = 5_000_000_000
TOKENIZER_CONFIG = "tokenizer_config.json"
_OF_OTHER_WEIGHTS = ("quantization_config", "dtype")
"""Keys of the config.json that a model was loaded with."""


def save(
    model: Decoder,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: bool = True,
) -> Path:
    """Write `model` as a published checkpoint that transformers, vLLM and others read; returns the folder.

    Args:
        model: from `load`, or trained here.
        path: a folder that is new, empty, or a published checkpoint, which is replaced file by file: its
            weights, config.json and tokenizer. All else in it stays. If that is interrupted, the folder holds
            the old checkpoint, the new one, or none that `load` would take for one.
        family: whose layout to write; None is the family that it was loaded as, or else the first that can
            express it.
        dtype: of the written weights; None keeps the model's.
        shard_bytes: approximate upper bound of the bytes of one file.
        tokenizer: whether to write the tokenizer of what the model was loaded from.

    Raises ConfigError when the family cannot express the model, CheckpointError when the folder holds
    anything else or the disk refuses, and DataError for a tokenizer that cannot be written.
    """
    check(shard_bytes >= 1, "shard_bytes", shard_bytes, "must be at least 1")
    folder = Path(path).expanduser()
    check_replaceable(folder)
    chosen, config = _family_and_config(model, family)
    config = {key: value for key, value in config.items() if key not in _OF_OTHER_WEIGHTS}
    config = _without_absent_code(config, folder)
    kind = dtype or next(model.parameters()).dtype
    config["torch_dtype"] = str(kind).removeprefix("torch.")
    files, ids = _tokenizer(model, folder) if tokenizer else ({}, {})
    config |= {key: number for key, number in ids.items() if config.get(key) is None}
    bindings = bind(chosen.weights, model.config, state_of(model))
    try:
        with published_folder(folder, _replaced(folder, model.origin, files)) as place:
            write_weights(place, bindings, dtype, shard_bytes)
            for name, content in files.items():
                (place / name).write_bytes(content)
            (place / CONFIG).write_bytes(_json(config))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error
    return folder


def _family_and_config(model: Decoder, name: str | None) -> tuple[Family, dict[str, Any]]:
    """The family to write, and the config.json."""
    origin = model.origin
    if name is None and origin is not None:
        name = origin.family
    if name is not None:
        family = family_named(name)
        kept = origin.config if origin is not None and origin.family == name else None
        return family, family.to_hf(_as_announced(model.config, family, kept), kept)
    reasons = []
    for family in FAMILIES:
        try:
            return family, family.to_hf(model.config)
        except ConfigError as error:
            reasons.append(f"{family.name}: {error}")
    raise ConfigError("no family's config.json can express this model; " + "; ".join(reasons))


def _as_announced(config: ModelConfig, family: Family, origin: Any) -> ModelConfig:
    """`config` with the multi-token prediction layers that its config.json announces, held or not."""
    if origin is None:
        return config
    announced = family.from_hf(origin).num_mtp_layers
    return changed(config, num_mtp_layers=max(announced, config.num_mtp_layers))


def _tokenizer(model: Decoder, folder: Path) -> tuple[dict[str, bytes], Mapping[str, int]]:
    """Tokenizer files to write along, and the special token ids for config.json."""
    origin, length = model.origin, model.config.max_seq_len
    if origin is None or origin.path is None:
        return {}, {}
    if origin.path.suffix == ".gguf":
        found = gguf_tokenizer_files(origin.path, length)
    elif origin.family is None:
        found = run_tokenizer_files(origin.path, length)
    else:
        return _published_files(origin.files, folder), {}
    return ({}, {}) if found is None else (dict(found.files), found.ids)


def _published_files(files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """`files`, with a tokenizer_config.json that names no code unless it is there."""
    try:
        config = json.loads(files.get(TOKENIZER_CONFIG, b""))
    except ValueError:  # not ours to judge
        return dict(files)
    kept = _without_absent_code(config, folder) if isinstance(config, dict) else config
    return dict(files) if kept == config else {**files, TOKENIZER_CONFIG: _json(kept)}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _without_absent_code(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`config` without an auto_map, unless all the code that it names lies in `folder` already."""
    # An entry is "module.Class" or a list of them, with "owner/name--" before it for code of elsewhere.
    named = re.findall(r'"([^".]*)\.[^"]*"', json.dumps(config.get("auto_map")))
    if named and all(re.fullmatch(r"\w+", name) and (folder / f"{name}.py").is_file() for name in named):
        return dict(config)
    return {key: value for key, value in config.items() if key != "auto_map"}


def _replaced(folder: Path, origin: Origin | None, files: Mapping[str, bytes]) -> frozenset[str]:
    """Files of another model's tokenizer in `folder`, which must not stay beside the new ones."""
    if not files or not folder.exists():
        return frozenset()
    is_own = (
        origin is not None
        and origin.path is not None
        and os.path.realpath(origin.path) == os.path.realpath(folder)
    )
    return frozenset() if is_own else COMPANIONS
