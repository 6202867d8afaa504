"""Models from disk and to disk: moeworks' own runs, published checkpoints, GGUF files."""

import json
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from moeworks.checkpoint import latest_checkpoint, read_checkpoint
from moeworks.checkpoint.bindings import bind, check_names, fill, usual_names
from moeworks.checkpoint.gguf_source import GgufSource
from moeworks.checkpoint.publish import write_weights
from moeworks.checkpoint.quantized import dequantized
from moeworks.checkpoint.source import FolderSource, RoutedExpertsSource, Source, read_json
from moeworks.checkpoint.staging import staged_directory
from moeworks.config import ModelConfig, RunConfig
from moeworks.config.codec import from_dict
from moeworks.config.weight_rules import WeightMap
from moeworks.errors import CheckpointError, ConfigError, check
from moeworks.families import FAMILIES, Family, family_named, family_of
from moeworks.families.gguf import gguf_model
from moeworks.families.weights import plain
from moeworks.gguf_file import GgufFile
from moeworks.models.decoder import Decoder
from moeworks.models.init import NoInit
from moeworks.models.origin import Origin
from moeworks.models.weights import load_weights

SHARD_BYTES = 5_000_000_000
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_EMBED = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def load(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Decoder:
    """A model in evaluation mode, every tensor of it from the disk.

    Args:
        path: a published checkpoint's folder (config.json with a `model_type`, and safetensors files), a
            `.gguf` file, a run's folder (`runs/NAME`), or one of its checkpoints
            (`runs/NAME/checkpoints/step-00000100`).
        device: where the model goes.
        dtype: of its weights; None keeps what the checkpoint says (float32 for GGUF). Selection biases stay
            float32.

    Raises CheckpointError when there is none, it is damaged, or its tensors are not those of its config, and
    ConfigError when its config is not one that moeworks can build.
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        return _load_gguf(folder, torch.device(device), dtype)
    published = published_config(folder)
    if published is None:
        model = _load_run(folder)
        return model.to(device=device, dtype=dtype).eval()
    return _load_published(folder, published, torch.device(device), dtype)


def save(
    model: Decoder,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `model` as a published checkpoint that transformers, vLLM and others read; returns the folder.

    Args:
        model: from `load`, or trained here.
        path: a folder, which appears whole or not at all, in the place of one that may be there.
        family: whose layout to write; None is the family that it was loaded as, or else the first that can
            express it.
        dtype: of the written weights; None keeps the model's.
        shard_bytes: a file holds at most about so many bytes.

    Raises ConfigError when the family cannot express the model, CheckpointError when the disk refuses.
    """
    check(shard_bytes >= 1, "shard_bytes", shard_bytes, "must be at least 1")
    chosen, config = _family_and_config(model, family)
    kind = dtype or next(model.parameters()).dtype
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "dtype")}
    config["torch_dtype"] = str(kind).removeprefix("torch.")
    bindings = bind(chosen.weights, model.config, _state(model))
    folder = Path(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(folder) as staged:
            write_weights(staged, bindings, dtype, shard_bytes)
            text = json.dumps(config, indent=2, ensure_ascii=False)
            (staged / "config.json").write_text(text + "\n", encoding="utf-8")
            _copy_tokenizer(model.origin, staged)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {error}") from error
    return folder


def published_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a published checkpoint; None where `path` is a run or something else."""
    file = path / "config.json"
    if not file.is_file() or (path / "checkpoint.json").is_file():
        return None
    config = read_json(file)
    return config if "model_type" in config or "architectures" in config else None


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the latest one of the run there."""
    if (path / "checkpoint.json").is_file():
        return path
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: neither a run (config.json) nor a checkpoint (checkpoint.json)")
    return latest_checkpoint(path / "checkpoints")


def _load_run(path: Path) -> Decoder:
    directory = find_checkpoint(path)
    checkpoint = read_checkpoint(directory)
    try:
        config = from_dict(RunConfig, checkpoint.state["config"])
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = Decoder(config.model)
    if config.train.precision == "float64":
        model = model.double()
    load_weights(model, checkpoint.tensors["model"], str(directory))
    return model


def _load_published(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> Decoder:
    family = family_of(config)
    source = dequantized(FolderSource(folder), config)
    model_config = _with_held_mtp(family.weights, family.from_hf(config), source)
    router = model_config.router
    if router.num_identity_experts:
        source = RoutedExpertsSource(source, router.num_experts, router.num_identity_experts)
    origin = Origin(family.name, config, folder)
    kind = dtype or _declared_dtype(config, source)
    return build_from(source, model_config, family, origin, str(folder), device=device, dtype=kind)


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype | None) -> Decoder:
    file = GgufFile(path)
    source, found = GgufSource(file), gguf_model(file)
    origin = Origin(found.family, found.config)
    family = replace(family_named(found.family), weights=found.weights)
    config = _with_held_mtp(family.weights, family.from_hf(found.config), source)
    return build_from(source, config, family, origin, str(path), device=device, dtype=dtype or torch.float32)


def build_from(
    source: Source,
    config: ModelConfig,
    family: Family,
    origin: Origin,
    where: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Decoder:
    """A model whose every tensor comes from `source`; names and shapes are checked before memory is taken.

    `where` stands in messages.
    """
    with NoInit(), torch.device("meta"):
        model = Decoder(config).to(dtype)
    check_names(_tied_weights(family, config, source), config, _state(model), source, where)
    # As to_empty does, whose empty_like from the meta device imports sympy first.
    model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
    fill(family.weights, config, _state(model), source, where)
    _check_tied(config, family, source, where)
    model.origin = origin
    return model.eval()


def _state(model: Decoder) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=False))


def _declared_dtype(config: dict[str, Any], source: Source) -> torch.dtype:
    """What config.json says, or else that of the first tensor of real numbers."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        name = place.get("dtype") or place.get("torch_dtype")
        if isinstance(name, str) and name.removeprefix("torch.") in _DTYPES:
            return _DTYPES[name.removeprefix("torch.")]
    names = sorted(source.names())
    first = source.tensor(names[0]).dtype if names else torch.float32
    return first if first in _DTYPES.values() else torch.bfloat16


def _with_held_mtp(weights: WeightMap, config: ModelConfig, source: Source) -> ModelConfig:
    """With the multi-token prediction layers that the files hold, whatever the config announces."""
    names = usual_names(weights, source.names()).keys()
    own = tuple(rule.theirs for rule in plain(weights.mtp))

    def holds(number: int) -> bool:
        prefix = weights.layer_prefix.format(i=config.num_layers + number)
        if number < config.num_mtp_layers:
            return any(name.startswith(prefix) for name in names)
        # A layer that nothing announces is one if it holds what only such layers have.
        return any(prefix + name in names for name in own)

    return _replace(config, num_mtp_layers=next(number for number in count() if not holds(number)))


def _replace(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` itself when nothing changes."""
    same = all(getattr(config, name) == value for name, value in changes.items())
    return config if same else replace(config, **changes)


# Tied embeddings: a checkpoint may hold the output projection too, as a copy.


def _tied_weights(family: Family, config: ModelConfig, source: Source) -> WeightMap:
    weights = family.weights
    if not config.tie_embeddings or _HEAD not in usual_names(weights, source.names()):
        return weights
    return replace(weights, ignored=(*weights.ignored, _HEAD))


def _check_tied(config: ModelConfig, family: Family, source: Source, where: str) -> None:
    names = usual_names(family.weights, source.names())
    if not config.tie_embeddings or _HEAD not in names or _EMBED not in names:
        return
    if not torch.equal(source.tensor(names[_HEAD]), source.tensor(names[_EMBED])):
        raise CheckpointError(f"{where}: config.json ties {_HEAD} to {_EMBED}, and they differ")


# Writing.


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
    return _replace(config, num_mtp_layers=max(announced, config.num_mtp_layers))


def _copy_tokenizer(origin: Origin | None, folder: Path) -> None:
    if origin is None or origin.folder is None:
        return
    for name in _COPIED:
        if (origin.folder / name).is_file():
            shutil.copyfile(origin.folder / name, folder / name)
