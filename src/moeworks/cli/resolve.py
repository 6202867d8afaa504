"""From what a user types to a model's config: a folder, a config.json, a GGUF file or a preset. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.config.codec import from_dict
from moeworks.config.model import ModelConfig
from moeworks.config.presets import PRESETS, preset
from moeworks.config.run import RunConfig
from moeworks.errors import ConfigError, check, nearest
from moeworks.families import BY_MODEL_TYPE, BY_PRESET, family_named, family_of
from moeworks.families.base import MAX_LAYERS
from moeworks.families.gguf import gguf_model
from moeworks.gguf_file import GgufFile

LARGEST_CONFIG = 16 * 2**20
"""Largest config.json that is read, in bytes; published ones have a few thousand."""


@dataclass(frozen=True)
class Described:
    """A model that a user named."""

    name: str
    """Name of the preset, or path of the file."""
    family: str
    """The published family, or `moeworks` for a model of a run."""
    model: ModelConfig
    stored: str | None = None
    """Format of the stored weights where the config.json says that they are quantised (its quant_method)."""


def resolve(text: str) -> Described:
    """The model that `text` names.

    `text` is a folder with a config.json (published or a run's), one of a run's checkpoints, a config.json, a
    `.gguf` file, or a preset: of a published model, or of `moeworks list presets`. A path that exists comes
    first.

    Raises ConfigError when there is no such thing and for a config.json that cannot be read, CheckpointError
    for a damaged .gguf file.
    """
    path = Path(text)
    try:
        if text and path.is_dir():
            return _from_folder(path)
        if path.suffix == ".gguf" and path.is_file():
            return _from_gguf(path)
        if text and path.is_file():
            return _from_file(path)
    except OSError as error:
        raise ConfigError(f"{text[:200]!r}: cannot be read: {error.strerror}") from error
    name = text.lower()
    if name in BY_PRESET:
        family = BY_PRESET[name]
        return Described(name, family.name, family.preset(name))
    if name in PRESETS:
        return Described(name, "moeworks", preset(name).model)
    known = nearest(name.rpartition("/")[2], [*BY_PRESET, *PRESETS])
    if known.startswith("known"):
        known = "`moeworks list models` names them"
    what = (
        "no such file or folder"
        if "/" in text or name.endswith(".json")
        else "no such preset, file or folder"
    )
    raise ConfigError(f"{text[:200]!r}: {what}; {known}")


def _from_folder(folder: Path) -> Described:
    if (folder / "checkpoint.json").is_file():  # runs/NAME/checkpoints/step-00000100
        folder = folder.resolve().parent.parent
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: a folder without a config.json")
    return _from_file(folder / "config.json")


def _from_file(path: Path) -> Described:
    data = _read(path)
    try:
        if "model_type" not in data and isinstance(data.get("model"), dict):
            layers = data["model"].get("num_layers")
            check(
                type(layers) is not int or layers <= MAX_LAYERS, "num_layers", layers, f"exceeds {MAX_LAYERS}"
            )
            return Described(str(path), "moeworks", from_dict(RunConfig, data).model)
        kind = data.get("model_type")
        if not isinstance(kind, str) or kind not in BY_MODEL_TYPE:
            known = ", ".join(sorted(BY_MODEL_TYPE))
            raise ConfigError(f"model_type = {kind!r}: unknown family; known: {known}")
        family = family_of(data)
        return Described(str(path), family.name, family.from_hf(data), _stored(data))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_gguf(path: Path) -> Described:
    file = GgufFile(path)
    try:
        found = gguf_model(file)
        model = family_named(found.family).from_hf(found.config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Described(str(path), found.family, model, f"GGUF, most of it {file.stored}")


def _read(path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    if size > LARGEST_CONFIG:
        raise ConfigError(f"{path}: {size:,} bytes are too many for a config.json")
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return data


def _stored(data: Mapping[str, Any]) -> str | None:
    """The quant_method of a published config.json, with the block that shares a scale where it says so."""
    quantised = data.get("quantization_config")
    if not isinstance(quantised, dict) or "quant_method" not in quantised:
        return None
    block = quantised.get("weight_block_size")
    return f"{quantised['quant_method']}" + (f", blocks of {block}" if block else "")
